"""A fourth method is one folder, one line in METHODS and a notebook: the rest of the suite takes it from there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from ser_kd_utils.cli import main
from ser_kd_utils.methods import METHODS, tables_of
from ser_kd_utils.records import read_runs
from ser_kd_utils.reproduce import plan

ROOM = {
    "__init__": '''
from ser_kd_utils.methods.base import Method, Notebook

METHOD = Method(
    name="toy", package=__name__, settings="ToySettings", experiment="ToyExperiment",
    notebooks=(Notebook("10_toy", kinds=("main",)),),
)
''',
    "settings": '''
from ser_kd_utils.settings import ASSUMED, Count, Positive, Precision, Settings, Weight, strict, setting

@strict
class ToySettings(Settings):
    group = "toy"
    bands: Count = setting(ASSUMED, "of the log filter bank that it looks at", 40)
    epochs: Count = setting(ASSUMED, "few", 5)
    batch_size: Count = setting(ASSUMED, "utterances a step", 8)
    lr: Positive = setting(ASSUMED, "SGD", 0.1)
    warmup_ratio: Weight = setting(ASSUMED, "none", 0.0)
    max_grad_norm: Weight = setting(ASSUMED, "gradient norm", 1.0)
    precision: Precision = setting(ASSUMED, "as ever", "float32")
''',
    "variants": '''
from ser_kd_utils.methods.base import Variant

def variants(settings):
    question, one = "What does one band tell?", {"bands": 1}
    blind = Variant("toy-blind", "toy", "toy, one band", question, noisy=False, overrides=one)
    toy = Variant("toy", "toy", "toy", "Do all bands help?", noisy=False, baseline="toy-blind")
    return {each.name: each for each in (blind, toy)}
''',
    "experiment": '''
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from ser_kd_utils.data.features import log_filter_bank
from ser_kd_utils.methods.teacher.experiment import MethodExperiment
from ser_kd_utils.training.losses import CrossEntropy

class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    bands: int = 40

class Toy(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.classifier = torch.nn.Linear(config.bands, config.num_labels)
        self.post_init()

    def forward(self, input_values):
        means = log_filter_bank(input_values)[..., : self.config.bands].mean(1)
        return SequenceClassifierOutput(logits=self.classifier(means))

class ToyExperiment(MethodExperiment):
    method = "toy"

    @staticmethod
    def prepare_inputs(waves, lengths, mask=None):
        return {"input_values": waves}

    def dataset(self, name):
        return self._windows(name, self.classes(self.train), longest=8000)

    def trained(self, name):
        torch.manual_seed(self.seed)
        network = Toy(ToyConfig(bands=self.settings_of(name).bands, **self.class_names))
        optimizer = torch.optim.SGD(network.parameters(), self.settings_of(name).lr)
        return network, self._optimise(name, network, CrossEntropy(), self.dataset(name), optimizer=optimizer), []
''',
    "tables": '''
from ser_kd_utils.report import tables as report
from ser_kd_utils.report.differences import Comparison, Family
from ser_kd_utils.report.tables import Score

CLAIMS = [Comparison("toy", "toy-blind", "clean", "all bands help")]

def tables(runs):
    own = [run for run in runs if run.info["method"] == "toy"]
    names = report.recorded(own, "main", ("toy-blind", "toy"))
    columns = {"row": report.label, "model": report.told("title"), "UA clean": Score("clean")}
    family = Family(own, CLAIMS)
    return [report.scores("toy", lambda: report.aligned(own, names), columns),
            family.comparisons("toy_comparisons", CLAIMS), family.verdicts("toy_claims")]
''',
}  # fmt: skip
SHARED = "\n".join(f'{name}: str = ""' for name in ("corpus", "name", "profile", "results", "overrides"))
EACH = SHARED + '\ndata_root: str = ""\nnoise_dir: str = ""\nfold: int = 1\nseed: int = 0'
TRAIN = """from ser_kd_utils.methods import METHODS
import toy_method
METHODS["toy"] = toy_method.METHOD
from toy_method.experiment import ToyExperiment
experiment = ToyExperiment(corpus, profile, fold, seed, data_root, noise_dir, results, overrides, name)
for variant in experiment.variants:
    experiment.run(variant)"""
TABLES = """from ser_kd_utils.methods import METHODS, tables_of
import toy_method
METHODS["toy"] = toy_method.METHOD
from ser_kd_utils.records import read_runs, results_folder
from ser_kd_utils.report.write import write
folder = results_folder(results, name, profile, overrides)
for table in tables_of(read_runs(folder)).values():
    write(table, folder)"""


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """The room and its notebooks in a temporary folder, and the line in METHODS."""
    (tmp_path / "toy_method").mkdir()
    shutil.copytree(plan.NOTEBOOKS, tmp_path / "notebooks")
    (tmp_path / "toy_method" / "styles.csv").write_text("name,colour,marker,line\ntoy,#000000,o,-\n")
    for name, text in ROOM.items():
        (tmp_path / "toy_method" / f"{name}.py").write_text(text)
    for name, first, cells in (
        ("00_corpora_and_noise", EACH, []), ("10_toy", EACH, [TRAIN]), ("09_paper_tables", SHARED, [TABLES]),
    ):  # fmt: skip
        parameters = new_code_cell(first, metadata={"tags": ["parameters"]})
        book = new_notebook(cells=[parameters, *map(new_code_cell, cells)])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))  # for the notebooks' kernels
    import toy_method

    monkeypatch.setattr(plan, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setitem(METHODS, "toy", toy_method.METHOD)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("toy_method")]:
        del sys.modules[name]


def test_it_is_planned_trained_tabulated_and_explained(toy, tones, capsys):
    place = ["--corpus", "manifest", "--data-root", str(tones), "--results", str(toy / "results"), "--folds", "1"]
    place += ["--only", "00,10,09"]
    assert main(["status", *place]) == 0
    assert "not run      10_toy__fold-1__seed-0" in capsys.readouterr().out
    assert main(["reproduce", *place, "--set", "toy.epochs=4"]) == 0, capsys.readouterr().out
    folder = toy / "results" / "corpus-tiny+toy.epochs=4"
    runs = {run.info["variant"]: run for run in read_runs(folder)}
    assert set(runs) == {"toy-blind", "toy"} and len(runs["toy"].history) == 4
    assert [run.info["settings"]["toy"]["bands"] for run in runs.values()] == [1, 40]
    capsys.readouterr()
    assert main(["status", *place, "--set", "toy.epochs=4"]) == 0
    assert "done         10_toy__fold-1__seed-0" in capsys.readouterr().out
    made = tables_of([*runs.values()])
    assert [line["row"].text for line in made["toy"].lines] == ["toy-blind", "toy"]
    assert (folder / "tables" / "toy.csv").read_text() == made["toy"].frame.to_csv(index=False)
    named = [str(folder / "tables" / "toy.csv"), "toy", "UA clean"]
    assert main(["explain", *named]) == 0
    told = capsys.readouterr().out
    assert "computed again from the records: equal" in told and "toy__toy__fold-F__seed-S" in told
    claims = [str(folder / "tables" / "toy_claims.csv"), "all bands help", "verdict"]
    assert main(["explain", *claims]) == 0
    assert "toy-blind" in capsys.readouterr().out


def test_its_settings_are_checked_like_all_others(toy, tones, capsys):
    place = ["--corpus", "manifest", "--data-root", str(tones), "--results", str(toy / "results"), "--folds", "1"]
    assert main(["reproduce", *place, "--set", "toy.bands=0"]) == 2
    assert "toy.bands=0" in capsys.readouterr().err
    assert not (toy / "results").exists() or not any((toy / "results").iterdir())
