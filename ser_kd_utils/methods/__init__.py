"""The methods of the suite. A new one needs a folder here, its name in METHODS and a pair of notebooks."""

from collections.abc import Mapping
from typing import Any

from ser_kd_utils.methods import dkdfmh, mckd, mlkd, teacher
from ser_kd_utils.methods.base import Method, Variant

METHODS: dict[str, Method] = {room.METHOD.name: room.METHOD for room in (teacher, mlkd, dkdfmh, mckd)}


def settings_of(profile: str, overrides: str = "") -> dict[str, Any]:
    """The settings of a profile by group: "noise", and each method's under its name.

    overrides: as `settings.parse_overrides` takes them. Raises ValueError for an unknown profile, method or setting, a
    value of the wrong type, and what no method can train.
    """
    from ser_kd_utils.settings import NoiseSettings, parse_overrides

    changed = parse_overrides(overrides)
    classes = {"noise": NoiseSettings, **{name: method.settings_class for name, method in METHODS.items()}}
    if unknown := sorted(set(changed) - set(classes)):
        raise ValueError(f"No settings {', '.join(unknown)}: begin with one of {', '.join(classes)}, as mlkd.epochs=2.")
    found = {name: settings.of(profile, **changed.get(name, {})) for name, settings in classes.items()}
    for method in METHODS.values():
        method.variants(found)  # refuses, for example, a student deeper than its teacher
    return found


def variants_of(settings: Mapping[str, Any]) -> dict[str, Variant]:
    """Every variant of every method by name."""
    return {name: each for method in METHODS.values() for name, each in method.variants(settings).items()}


def tables_of(runs: Any) -> dict[str, Any]:
    """Every declared table (`report.tables.Table`) by name, from all records of a results folder.

    A table is computed when its lines are asked for; without records it has none.
    """
    return {table.name: table for method in METHODS.values() for table in method.tables(runs)}
