"""The teacher has no table of its own: it is row (a) of MLKD's."""


def tables(runs: object) -> list:
    return []
