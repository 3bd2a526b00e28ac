"""DKDFMH's variants: a CNN alone and distilled, with one component changed, and trained in noise."""

from collections.abc import Mapping
from typing import Any

from ser_kd_utils.methods.base import Variant
from ser_kd_utils.methods.dkdfmh.settings import DKDFMHSettings

# Trained under the paper's likely protocol too; the others under the honest one only.
P1_VARIANTS = ("cnn-teacher", "cnn-alone", "cnn-kd", "cnn-dkd")
TAUGHT = {"teacher": "cnn-teacher", "baseline": "cnn-alone"}
PART = TAUGHT | {"kind": "component", "baseline": "cnn-dkd"}
NOISY = {"kind": "noise", "noisy": True, "baseline": "cnn-alone"}


def of_encoder(settings: Mapping[str, Any]) -> str:
    """The name of the student whose teacher is that of notebook 01, such as cnn-wav2vec2."""
    return f"cnn-{settings['teacher'].model_type}"


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """Main variants, components and those trained in noise. A component whose settings are those of cnn-dkd, of cnn-kd
    or of an earlier component is left out."""
    own, encoder = settings["dkdfmh"], of_encoder(settings)
    large = {"num_attention_heads": own.teacher_attention_heads, "head_dim": own.teacher_head_dim}
    parts = {own: None, own.replace(loss="kd"): None}
    for part in _components(own):
        parts.setdefault(own.replace(**part[-1]), part)
    rows = (
        ("cnn-teacher", "teacher CNN", "What do more and wider heads reach?", {"role": "teacher", "overrides": large}),
        ("cnn-alone", "student CNN", "What does the small network reach without distillation?", {}),
        ("cnn-kd", "student + KD", "Does classical distillation help?", TAUGHT | {"overrides": {"loss": "kd"}}),
        ("cnn-dkd", "student + DKD", "Does decoupling it help more?", TAUGHT),
        (encoder, f"student + DKD from (a), {encoder[4:]}", "Does another teacher serve?", TAUGHT | {"teacher": "a"}),
        *((f"cnn-{name}", *words, PART | {"overrides": to}) for name, *words, to in filter(None, parts.values())),
        ("cnn-alone-noisy", "student CNN, trained in noise", "What is noisy training worth?", NOISY),
        ("cnn-dkd-noisy", "student + DKD, trained in noise", "Does a clean teacher help in noise?",
         NOISY | {"teacher": "cnn-teacher", "baseline": "cnn-alone-noisy"}),
    )  # fmt: skip
    marks = {name: ("P1",) for name in P1_VARIANTS}
    return {
        name: Variant(name, "dkdfmh", *words, **{"noisy": False, "protocols": marks.get(name, ())} | more)
        for name, *words, more in rows
    }


def _components(own: DKDFMHSettings) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Name, title, question and overrides of each."""
    same = {"loss": "kd", "kd_temperature": own.temperature}
    heads, tuned = "How many heads must be fused?", "Does classical distillation do as well when it is tuned?"
    return [
        ("tckd", "TCKD only", "Is it the target class that teaches?", {"beta": 0.0}),
        ("nckd", "NCKD only", "Is it the other classes?", {"alpha": 0.0}),
        ("kd-same-temperature", f"KD at T {own.temperature:g}", "Is it the decoupling or the temperature?", same),
        *((f"alpha-{value:g}", f"alpha {value:g}", "How much target class?", {"alpha": value}) for value in own.alphas),
        *((f"beta-{value:g}", f"beta {value:g}", "How much of the others?", {"beta": value}) for value in own.betas),
        *((f"temperature-{t:g}", f"T {t:g}", "How soft?", {"temperature": t}) for t in own.temperatures),
        *((f"kd-weight-{weight:g}-temperature-{t:g}", f"KD, weight {weight:g}, T {t:g}", tuned,
           {"loss": "kd", "alpha": weight, "kd_temperature": t})
          for weight in (own.alpha, *own.alphas) for t in own.temperatures),
        *((f"heads-{n}", f"{n} head{'s' * (n > 1)}", heads, {"num_attention_heads": n}) for n in own.head_counts),
        ("attention-text", "attention as in the text", "Code or text?", {"attention": "text"}),
        ("mfcc", "MFCC", "Do the features matter?", {"features": "mfcc"}),
    ]  # fmt: skip


def grids(known: Mapping[str, Variant]) -> tuple[list[str], list[str]]:
    """What decoupled and what classical distillation are tuned among on dev speech: as many variants each.

    Decoupled distillation has alpha, beta and T changed one at a time, classical distillation each weight at each T.
    """
    taught = [each for each in known.values() if each.teacher == "cnn-teacher" and not each.noisy]
    weighed = [each for each in taught if each.overrides.keys() <= {"alpha", "beta", "temperature"}]
    decoupled = [each.name for each in weighed if all(each.overrides.values())]
    return decoupled, [each.name for each in taught if "loss" in each.overrides]
