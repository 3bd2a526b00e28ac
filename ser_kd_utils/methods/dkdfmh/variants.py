"""DKDFMH's variants: a CNN alone and distilled, with one component changed, and trained in noise."""

from collections.abc import Mapping
from typing import Any

from ser_kd_utils.methods.base import Variant
from ser_kd_utils.methods.dkdfmh.settings import DKDFMHSettings

P1_VARIANTS = ("cnn-teacher", "cnn-alone", "cnn-kd", "cnn-dkd")
"""Trained under the paper's likely protocol too; the others under the honest one only."""
TAUGHT = {"teacher": "cnn-teacher", "baseline": "cnn-alone"}
NOISY = {"kind": "noise", "noisy": True}


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """Main variants, components and those trained in noise. A component whose settings equal cnn-dkd's is left out."""
    own, alone = settings["dkdfmh"], "What does the small network reach without distillation?"
    rows = (
        ("cnn-teacher", "teacher CNN", "What do more and wider heads reach?", {"role": "teacher"}),
        ("cnn-alone", "student CNN", alone, {}),
        ("cnn-kd", "student + KD", "Does classical distillation help?", TAUGHT | {"overrides": {"loss": "kd"}}),
        ("cnn-dkd", "student + DKD", "Does decoupling it help more?", TAUGHT),
        ("cnn-wav2vec2", "student + DKD from wav2vec 2.0", "Does a teacher of another kind serve?",
         TAUGHT | {"teacher": "a"}),
        *((f"cnn-{name}", title, question, {"kind": "component", **TAUGHT, "baseline": "cnn-dkd", "overrides": changed})
          for name, title, question, changed in _components(own) if own.replace(**changed) != own),
        ("cnn-alone-noisy", "student CNN, trained in noise", "What is noisy training worth?",
         NOISY | {"baseline": "cnn-alone"}),
        ("cnn-dkd-noisy", "student + DKD, trained in noise", "Does a clean teacher help in noise?",
         NOISY | TAUGHT | {"baseline": "cnn-alone-noisy"}),
    )  # fmt: skip
    both = {name: {"protocols": ("P1",)} for name in P1_VARIANTS}
    return {
        name: Variant(name, "dkdfmh", title, question, **{"noisy": False} | more | both.get(name, {}))
        for name, title, question, more in rows
    }


def _components(own: DKDFMHSettings) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Name, title, question and overrides of each."""
    same = {"loss": "kd", "kd_temperature": own.temperature}
    heads = "How many heads must be fused?"
    return [
        ("tckd", "TCKD only", "Is it the target class that teaches?", {"beta": 0.0}),
        ("nckd", "NCKD only", "Is it the other classes?", {"alpha": 0.0}),
        ("kd-same-temperature", f"KD at T {own.temperature:g}", "Is it the decoupling or the temperature?", same),
        *((f"alpha-{value:g}", f"alpha {value:g}", "How much target class?", {"alpha": value}) for value in own.alphas),
        *((f"beta-{value:g}", f"beta {value:g}", "How much of the others?", {"beta": value}) for value in own.betas),
        *(
            (f"temperature-{value:g}", f"T {value:g}", "How soft?", {"temperature": value})
            for value in own.temperatures
        ),
        *((f"heads-{n}", f"{n} head{'s' * (n > 1)}", heads, {"num_attention_heads": n}) for n in own.head_counts),
        ("attention-text", "attention as in the text", "Code or text?", {"attention": "text"}),
        ("mfcc", "MFCC", "Do the features matter?", {"features": "mfcc"}),
    ]
