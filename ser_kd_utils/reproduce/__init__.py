"""Reproduction: plan, run, schedule, status, publish, compare."""
