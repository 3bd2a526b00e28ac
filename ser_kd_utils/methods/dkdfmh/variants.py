"""DKDFMH's variants: a CNN alone and distilled, with one component changed, and trained in noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ser_kd_utils.methods.base import Variant
from ser_kd_utils.methods.dkdfmh.settings import DKDFMHSettings

P1_VARIANTS = ("cnn-teacher", "cnn-alone", "cnn-kd", "cnn-dkd")
"""Trained under the paper's likely protocol too; the others under the honest one only."""

_clean = partial(Variant, method="dkdfmh", noisy=False)


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """Main variants, components and those trained in noise. A component whose settings equal cnn-dkd's is left out."""
    own = settings["dkdfmh"]
    components = (each for each in _components(own) if own.replace(**each.overrides) != own)
    both = (replace(each, protocols=("P1",)) if each.name in P1_VARIANTS else each for each in _main())
    return {each.name: each for each in (*both, *components, *_noise())}


def _main() -> Iterator[Variant]:
    yield _clean("cnn-teacher", title="teacher CNN", question="What do more and wider heads reach?", role="teacher")
    yield _clean("cnn-alone", title="student CNN", question="What does the small network reach without distillation?")
    distilled = partial(_clean, teacher="cnn-teacher", baseline="cnn-alone")
    yield distilled(
        "cnn-kd", title="student + KD", question="Does classical distillation help?", overrides={"loss": "kd"}
    )
    yield distilled("cnn-dkd", title="student + DKD", question="Does decoupling it help more?")
    yield _clean(
        "cnn-wav2vec2", title="student + DKD from wav2vec 2.0", question="Does a teacher of another kind serve?",
        teacher="a", baseline="cnn-alone",
    )  # fmt: skip


def _components(own: DKDFMHSettings) -> Iterator[Variant]:
    def changed(name: str, title: str, question: str, **overrides: Any) -> Variant:
        more = {"kind": "component", "teacher": "cnn-teacher", "baseline": "cnn-dkd", "overrides": overrides}
        return _clean(f"cnn-{name}", title=title, question=question, **more)

    yield changed("tckd", "TCKD only", "Is it the target class that teaches?", beta=0.0)
    yield changed("nckd", "NCKD only", "Is it the other classes?", alpha=0.0)
    same = {"loss": "kd", "kd_temperature": own.temperature}
    title = f"KD at T {own.temperature:g}"
    yield changed("kd-same-temperature", title, "Is it the decoupling or the temperature?", **same)
    for alpha in own.alphas:
        yield changed(f"alpha-{alpha:g}", f"alpha {alpha:g}", "How much target class?", alpha=alpha)
    for beta in own.betas:
        yield changed(f"beta-{beta:g}", f"beta {beta:g}", "How much of the others?", beta=beta)
    for temperature in own.temperatures:
        yield changed(f"temperature-{temperature:g}", f"T {temperature:g}", "How soft?", temperature=temperature)
    for count in own.head_counts:
        title = f"{count} head{'s' * (count > 1)}"
        yield changed(f"heads-{count}", title, "How many heads must be fused?", num_attention_heads=count)
    yield changed("attention-text", "attention as in the text", "Code or text?", attention="text")
    yield changed("mfcc", "MFCC", "Do the features matter?", features="mfcc")


def _noise() -> Iterator[Variant]:
    noisy = partial(Variant, method="dkdfmh", kind="noise")
    yield noisy(
        "cnn-alone-noisy", title="student CNN, trained in noise", question="What is noisy training worth?",
        baseline="cnn-alone",
    )  # fmt: skip
    yield noisy(
        "cnn-dkd-noisy", title="student + DKD, trained in noise", question="Does a clean teacher help in noise?",
        teacher="cnn-teacher", baseline="cnn-alone-noisy",
    )  # fmt: skip
