"""The `ser-kd` command. Heavy imports wait until a command needs them: `ser-kd --help` is instant."""

from __future__ import annotations

import argparse
import sys

from ser_kd_utils import __version__

CORPORA = "demo, iemocap, iemocap-improvised, meld, meld-4, emodb, ravdess, manifest"


def _numbers(text: str) -> tuple[int, ...]:
    """`1,3-5` -> (1, 3, 4, 5)."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2 or 1-5") from None
    return tuple(dict.fromkeys(numbers))


def _folds(text: str) -> tuple[int, ...] | None:
    return None if text == "all" else _numbers(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ser-kd", description="Reproduce knowledge distillation for SER in noise.")
    top.add_argument("--version", action="version", version=f"ser-kd {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("reproduce", help="run the notebooks and write records, tables and figures")
    run.add_argument("--corpus", default="demo", help=f"one of {CORPORA} (default: demo, made on first use)")
    run.add_argument("--data-root", default="", metavar="DIR", help="where the corpus lies (manifest: its CSV file)")
    run.add_argument("--noise-dir", default="", metavar="DIR", help="noise recordings (default: generated noise)")
    run.add_argument("--speech-dir", default="", metavar="DIR", help="unlabelled speech, for the ablations that use it")
    run.add_argument(
        "--teacher-logits", default="", metavar="FILE", help="CSV of a teacher's logits, for one row of 04"
    )
    run.add_argument("--profile", default="tiny", help="tiny: small networks, CPU; paper: wav2vec2-base, GPU")
    run.add_argument(
        "--folds", type=_folds, default=(), metavar="LIST", help="1,3-5 or all (default: all; the demo: its first)"
    )
    run.add_argument("--seeds", type=_numbers, default=(0,), metavar="LIST", help="0,1,2 or 0-4 (default: 0)")
    run.add_argument("--only", default="", metavar="LIST", help="notebook numbers, such as 01,09 (default: all)")
    run.add_argument(
        "--ablations",
        default="",
        metavar="LIST",
        help="rows of notebooks 03, 05 and 07 by name, or none (default: all; the demo: one each)",
    )
    run.add_argument("--results", default="", metavar="DIR", help="where to write (default: results/)")
    run.add_argument(
        "--time-limit", type=float, default=None, metavar="MINUTES", help="stop in time; run again to go on"
    )
    run.add_argument("--changes", default="", metavar="LIST", help="settings by name: 'epochs=2, teacher__epochs=2'")
    run.add_argument("--force", action="store_true", help="run again what is already recorded")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")

    why = commands.add_parser("explain", help="from a number in a table to the records behind it")
    why.add_argument("table", metavar="TABLE", help="such as mlkd, or a table's file")
    why.add_argument("row", nargs="?", default="", metavar="ROW", help="such as '(e)' (default: list rows and columns)")
    why.add_argument("column", nargs="?", default="", metavar="COLUMN", help="such as 'UA noisy' (default: all)")
    for name, default in (("corpus", "demo"), ("profile", "tiny"), ("results", ""), ("changes", "")):
        why.add_argument(f"--{name}", default=default, help="as for reproduce")

    readme = commands.add_parser("readme", help="put the tables of results/ between the README's markers")
    readme.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    return top


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.command == "reproduce":
            from ser_kd_utils.reproduce import reproduce

            return reproduce(options)
        if options.command == "explain":
            from ser_kd_utils.explain import explain

            return explain(options)
        from ser_kd_utils.tables import update_readme

        return update_readme(check=options.check)
    except (ValueError, FileNotFoundError) as error:
        print(f"ser-kd: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
