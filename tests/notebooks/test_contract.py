"""What every notebook of the suite keeps to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

from ser_kd_utils.methods import METHODS
from ser_kd_utils.reproduce.plan import EACH, FIRST, LAST, NOTEBOOKS, READING

PLANNED = {each.name: each for method in METHODS.values() for each in method.notebooks}
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PARAMETER = re.compile(r"^(\w+): (str|int|float|bool) = (.+?)  # \S.*$")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request) -> tuple[Path, nbformat.NotebookNode]:
    return request.param, nbformat.read(request.param, as_version=4)


def code_cells(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_every_notebook_is_planned_and_every_planned_one_exists():
    assert {path.stem for path in PATHS} == {FIRST, *PLANNED, *LAST}


def test_shape(notebook):
    path, book = notebook
    assert book.metadata.kernelspec.name == "python3"
    assert 25 <= len(book.cells) <= 45
    assert path.stat().st_size <= 300_000
    assert book.cells[0].source.startswith(f"# {path.stem[:2]} ")
    assert all(len(cell.source.splitlines()) <= 40 for cell in code_cells(book))
    assert not any(cell.source.lstrip().startswith(("!", "%")) for cell in code_cells(book))


def test_stored_outputs_are_one_clean_run(notebook):
    _, book = notebook
    assert [cell.execution_count for cell in code_cells(book)] == list(range(1, len(code_cells(book)) + 1))
    outputs = [output for cell in code_cells(book) for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    text = nbformat.writes(book)
    assert not re.search(r"/(home|root|tmp|work|Users)/\w", text)


def test_something_is_compared_by_nbval(notebook):
    _, book = notebook
    compared = [cell for cell in code_cells(book) if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert compared and all(cell.outputs for cell in compared)


def test_parameters_are_plain_and_shared(notebook):
    path, book = notebook
    tagged = [cell for cell in code_cells(book) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    values = {}
    for line in tagged[0].source.splitlines():
        name, kind, value = PARAMETER.match(line).groups()
        values[name] = ast.literal_eval(value)
        assert type(values[name]).__name__ == kind, name
    own = PLANNED[path.stem].parameters if path.stem in PLANNED else ()
    names = READING if path.stem in LAST else (*EACH, *own)
    defaults = {"corpus": "demo", "profile": "tiny", "fold": 1, "seed": 0}
    assert values == {name: defaults.get(name, "") for name in names}


def test_the_formula_of_notebook_02_is_the_packages():
    """The LaTeX in the notebook, computed by hand in float64, against the function called beside it."""
    import numpy as np
    import torch

    from ser_kd_utils.methods.mlkd.loss import multi_level_loss

    book = nbformat.read(NOTEBOOKS / "02_noisy_student_distillation.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in book.cells)
    formula = (
        r"\tfrac{1}{D}\,\lVert \hat h_l(s)_t - h_l(x)_t\rVert_1 \;-\; "
        r"\lambda \log \sigma\big(\cos(\hat h_l(s)_t,\, h_l(x)_t)\big)"
    )
    assert formula in text and "multi_level_loss(predictions, targets, mask" in text
    rng = np.random.default_rng(0)
    g, h, mask, lam = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5)), np.ones((3, 4), bool), 0.7
    mask[1, 2:] = False
    levels = []
    for one, other in zip(g, h, strict=True):
        terms = []
        for a, b in zip(one[mask], other[mask], strict=True):
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            terms.append(np.abs(a - b).sum() / 5 - lam * np.log(1 / (1 + np.exp(-cosine))))
        levels.append(np.mean(terms))
    ours = multi_level_loss([*torch.tensor(g)], [*torch.tensor(h)], torch.tensor(mask), lam)
    assert ours.item() == pytest.approx(np.mean(levels), rel=1e-12)


def test_the_formulas_of_notebook_03_are_the_packages():
    import numpy as np
    import torch

    from ser_kd_utils.training.losses import kd_loss

    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOKS / "03_mlkd_ablations.ipynb", as_version=4).cells)
    assert r"T^2\,\mathrm{KL}\big(\mathrm{softmax}(z_\text{teacher}/T)" in text and "kd_loss(no_opinion" in text
    teacher, student = np.random.default_rng(0).normal(size=(2, 3, 4))
    p, q = (np.exp(z / 3) / np.exp(z / 3).sum(1, keepdims=True) for z in (teacher, student))
    wanted = 9 * (p * np.log(p / q)).sum(1).mean()
    assert kd_loss(torch.tensor(student), torch.tensor(teacher), 3.0).item() == pytest.approx(wanted, rel=1e-12)


def test_the_formulas_of_notebook_04_are_the_packages():
    import numpy as np
    import torch

    from ser_kd_utils.methods.dkdfmh.loss import decoupled_kd

    path = NOTEBOOKS / "04_decoupled_distillation.ipynb"
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert r"\mathrm{NCKD} = T^2\,\mathrm{KL}(q_\text{teacher} \,\Vert\, q_\text{student})" in text
    assert r"$b = [p_y,\, 1 - p_y]$ and $q_i = p_i / (1 - p_y)$" in text and "decoupled_kd(student_says" in text
    teacher, student = np.random.default_rng(0).normal(size=(2, 1, 4))
    p, s = (np.exp(z / 3) / np.exp(z / 3).sum() for z in (teacher[0], student[0]))
    b, others = (np.array([x[2], 1 - x[2]]) for x in (p, s)), [0, 1, 3]
    first, second = b
    target = 9 * (first * np.log(first / second)).sum()
    q, r = (x[others] / (1 - x[2]) for x in (p, s))
    found = decoupled_kd(torch.tensor(student), torch.tensor(teacher), torch.tensor([2]), 3.0)
    assert [part.item() for part in found] == pytest.approx([target, 9 * (q * np.log(q / r)).sum()], rel=1e-12)


def test_the_formulas_of_notebook_06_are_the_packages():
    import numpy as np
    import torch

    from ser_kd_utils.methods.mckd.loss import supervised_contrastive
    from ser_kd_utils.training.losses import kd_loss

    path = NOTEBOOKS / "06_curriculum_meta_distillation.ipynb"
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    contrast = r"\log\frac{\exp(e_i \cdot e_j / T_c)}{\sum_{a \ne i} \exp(e_i \cdot e_a / T_c)}"
    assert r"\frac{1}{B}\sum_i \frac{-1}{|Y(i)|}\sum_{j \in Y(i)} " + contrast in text
    rng, labels, tau = np.random.default_rng(0), [0, 1, 0, 0, 1, 2], 0.3
    given = rng.normal(size=(6, 3))
    z = given / np.linalg.norm(given, axis=1, keepdims=True)
    total = 0.0
    for i in range(6):
        others = [a for a in range(6) if a != i]
        below = sum(np.exp(z[i] @ z[a] / tau) for a in others)
        own = [np.log(np.exp(z[i] @ z[p] / tau) / below) for p in others if labels[p] == labels[i]]
        total -= np.mean(own) if own else 0.0
    ours = supervised_contrastive(torch.tensor(given), torch.tensor(labels), tau)
    assert ours.item() == pytest.approx(total / 6, rel=1e-12)
    side = r"\mathrm{softmax}(z_\text{%s}/T_\text{%s})"
    both = side % ("teacher", "teacher") + r"\,\Vert\," + side % ("student", "student")
    distilled = r"T_\text{student}T_\text{teacher}\,\mathrm{KL}\big(" + both + r"\big)"
    assert distilled in text
    teacher, student = rng.normal(size=(2, 4))
    p, q = (np.exp(x) / np.exp(x).sum() for x in (teacher / 3, student / 2))
    found = kd_loss(torch.tensor(student)[None], torch.tensor(teacher)[None], 2.0, 3.0)
    assert found.item() == pytest.approx(6 * (p * np.log(p / q)).sum(), rel=1e-12)
