"""MCKD's variants: a variable-token student alone and with one thing more each, components changed, and in noise."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ser_kd_utils.methods.base import Variant
from ser_kd_utils.methods.mckd.settings import MCKDSettings

# The temperature at which CTKD begins: theta 1. With 4 classes KD above it hardly differs from matching logits.
PUBLISHED_START = 1 + 20 / (1 + math.exp(-1))

FIXED = {"curriculum": False, "meta": "none"}


def variants(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """Main variants, components and those trained in noise."""
    meta, harder = {"curriculum": False, "meta": "temperature"}, "Does a temperature that makes it harder help?"
    main = (
        ("alone", "student", "What do variable tokens reach without help?", "", {"supcon_weight": 0.0}),
        ("supcon", "+ SupCon", "Does it help to draw each class together?", "mc-alone", {}),
        ("kd", "+ SupCon + KD", "Does a teacher help?", "mc-supcon", FIXED),
        ("curriculum", "+ SupCon + curriculum KD", harder, "mc-kd", {"meta": "none"}),
        ("meta", "+ SupCon + meta KD", "Do temperatures learnt on held-out speech help?", "mc-kd", meta),
        ("full", "+ SupCon + curriculum + meta KD", "Do both together?", "mc-kd", {}),
    )
    found = {}
    for kind, rows in (("main", main), ("component", _components(settings["mckd"]))):
        for name, title, question, baseline, overrides in rows:
            more = {"baseline": baseline, "teacher": "" if name in ("alone", "supcon") else "a", "overrides": overrides}
            found[f"mc-{name}"] = Variant(f"mc-{name}", "mckd", title, question, kind, noisy=False, **more)
    for name, question, baseline in (
        ("mc-alone", "What is noisy training worth?", "mc-alone"),
        ("mc-kd", "Does a clean teacher help in noise?", "mc-alone-noisy"),
        ("mc-full", "Do curriculum and meta-knowledge?", "mc-kd-noisy"),
    ):
        about = {"name": f"{name}-noisy", "title": f"{found[name].title}, trained in noise", "question": question}
        found[about["name"]] = replace(found[name], kind="noise", noisy=True, baseline=baseline, **about)
    return found


def _components(own: MCKDSettings) -> list[tuple[str, str, str, str, dict[str, Any]]]:
    """Name, title, question, baseline and overrides of each."""
    full, kd, levels, log_mel = "mc-full", "mc-kd", "Does it need the levels of log-mel?", {"features": "log-mel"}
    taught, taught_question = FIXED | {"meta": "teacher"}, "Does MetaDistil's teacher beat the fixed one?"
    hot, above = FIXED | {"temperature": PUBLISHED_START}, {"curriculum_start": PUBLISHED_START, "meta": "none"}
    ended, ended_question = FIXED | {"meta": "static"}, "Is it learning them, or where they end?"
    at, time = f"T {PUBLISHED_START:.1f}", {"tokens": "time", "pooling": "mean"}
    mus = [mu for mu in own.supcon_weights if mu != own.supcon_weight]
    nus = [nu for nu in own.kd_weights if nu != own.kd_weight]
    return [
        ("no-supcon", "without SupCon", "Is SupCon needed beside the teacher?", full, {"supcon_weight": 0.0}),
        *((f"mu-{mu:g}", f"mu {mu:g}", "How much SupCon?", full, {"supcon_weight": mu}) for mu in mus),
        *((f"nu-{nu:g}", f"nu {nu:g}", "How much distillation?", full, {"kd_weight": nu}) for nu in nus),
        ("time-tokens", "time tokens", "Do the variable tokens matter?", full, time),
        ("mean-pooling", "mean over channels", "Must it know which channel is which?", full, {"pooling": "mean"}),
        ("log-mel", "log-mel", "Must it hear through the teacher's ears?", full, log_mel),
        ("z-score", "z-score over time", "Does the student need levels?", full, {"z_score": True}),
        ("log-mel-z-score", "log-mel, z-score over time", levels, "mc-log-mel", {"z_score": True, **log_mel}),
        ("unbalanced", "classes as they come", "Must classes count alike?", full, {"balance": "none"}),
        ("kd-start", f"KD at {at}, fixed", "Does the curriculum's published start do it all?", kd, hot),
        ("published-start", f"curriculum KD from {at}", "Can a curriculum move anything there?", "mc-kd-start", above),
        ("meta-static", "KD at the temperatures of mc-meta's end", ended_question, "mc-meta", ended),
        ("taught-teacher", "teacher learns, too", taught_question, kd, taught),
    ]
