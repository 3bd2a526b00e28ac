"""An experiment of any method of METHODS."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from ser_kd_utils.methods import METHODS, Variant, settings_of
from ser_kd_utils.training.experiment import Experiment

if TYPE_CHECKING:
    from ser_kd_utils.methods.teacher.experiment import TeacherExperiment


class MethodExperiment(Experiment):
    """An Experiment (see its arguments) with the settings and variants of its method, whose students may learn from
    the teacher (a)."""

    def __init__(self, *args: Any, **options: Any):
        self._asked = args, options
        super().__init__(*args, **options)

    @cached_property
    def teachers(self) -> TeacherExperiment:
        """Notebook 01's experiment on the same fold and seed: its teacher (a) is the same record."""
        from ser_kd_utils.methods.teacher.experiment import TeacherExperiment

        args, options = self._asked
        return TeacherExperiment(*args, **options)

    def _settings(self, profile: str, overrides: str) -> dict[str, Any]:
        return settings_of(profile, overrides)

    def _variants(self) -> dict[str, Variant]:
        return METHODS[self.method].variants(self.all_settings)

    def _code_by_value(self) -> list[str]:
        rooms = [f"{m.package}.{part}" for m in METHODS.values() for part in ("__init__", "settings", "variants")]
        return [*super()._code_by_value(), "ser_kd_utils.methods.__init__", "ser_kd_utils.methods.base", *rooms]

    def _teacher_fingerprint(self, teacher: str) -> str:
        return self.teachers.fingerprint("a") if teacher == "a" else super()._teacher_fingerprint(teacher)
