"""The teacher's variants: fine-tuned, frozen under a small head, and trained with as few labels as some students."""

from collections.abc import Mapping
from typing import Any

from ser_kd_utils.methods.base import Variant

# Of the labels, where students are told few.
FEW = 0.25


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """(a), the control with few labels and, for a pre-trained encoder, (a0)."""
    rows = [
        ("a", "teacher, clean", "How far does a clean-speech model fall in noise?", "main", {}),
        ("a-few-labels", "teacher, a quarter of the labels", "What does it know of few labels?", "control",
         {"label_fraction": FEW}),
    ]  # fmt: skip
    if settings["teacher"].checkpoint:
        frozen = {"tuning": "frozen", "epochs": 2 * settings["teacher"].epochs}
        rows.insert(1, ("a0", "frozen encoder, clean", "What do the encoder's own states tell?", "main", frozen))
    return {
        name: Variant(name, "teacher", title, question, kind, role="teacher", noisy=False, overrides=overrides)
        for name, title, question, kind, overrides in rows
    }
