"""The teacher has no table of its own: it is row (a) of MLKD's."""

from __future__ import annotations

from collections.abc import Sequence

from ser_kd_utils.records import Run
from ser_kd_utils.report.tables import Table


def tables(runs: Sequence[Run]) -> list[Table]:
    return []
