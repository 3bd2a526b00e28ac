"""The teacher's one variant."""

from collections.abc import Mapping
from typing import Any

from ser_kd_utils.methods.base import Variant


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """(a): the encoder fine-tuned on clean speech."""
    question = "How far does a clean-speech model fall in noise?"
    return {"a": Variant("a", "teacher", "teacher, clean", question, role="teacher", noisy=False)}
