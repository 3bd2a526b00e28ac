"""Reproduction: plan and status, run, schedule, publish, compare, explain."""


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}{'s' * (number != 1)}"
