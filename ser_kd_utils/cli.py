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


def _add_data(command: argparse.ArgumentParser) -> None:
    """What is trained on, with which settings, and where records go."""
    add = command.add_argument
    add("--corpus", default="demo", help=f"one of {CORPORA} (default: demo, made on first use)")
    add("--data-root", default="", metavar="DIR", help="where the corpus lies (manifest: its CSV file)")
    add("--noise-dir", default="", metavar="DIR", help="noise recordings (default: generated noise)")
    add("--speech-dir", default="", metavar="DIR", help="unlabelled speech, for the ablations that use it")
    add("--teacher-logits", default="", metavar="FILE", help="CSV of a teacher's logits, for one row of 04")
    add("--profile", default="tiny", help="tiny: small networks, CPU; paper: wav2vec2-base, GPU")
    add("--results", default="", metavar="DIR", help="where to write (default: results/)")
    add("--changes", default="", metavar="LIST", help="settings by name: 'epochs=2, teacher__epochs=2'")


def _add_plan(command: argparse.ArgumentParser) -> None:
    _add_data(command)
    add = command.add_argument
    add("--folds", type=_folds, default=(), metavar="LIST", help="1,3-5 or all (default: all; the demo: its first)")
    add("--seeds", type=_numbers, default=(0,), metavar="LIST", help="0,1,2 or 0-4 (default: 0)")
    add("--only", default="", metavar="LIST", help="notebook numbers, such as 01,09 (default: all)")
    add(
        "--ablations",
        default="",
        metavar="LIST",
        help="rows of notebooks 03, 05 and 07 by name, or none (default: all; the demo: one each)",
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ser-kd", description="Reproduce knowledge distillation for SER in noise.")
    top.add_argument("--version", action="version", version=f"ser-kd {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("reproduce", help="run the notebooks and write records, tables and figures")
    _add_plan(run)
    run.add_argument("--workers", type=int, default=0, metavar="N", help="so many runs at a time on this machine")
    run.add_argument("--scheduler", default="", metavar="ADDRESS", help="spread the runs over a running Dask cluster")
    run.add_argument(
        "--time-limit", type=float, default=None, metavar="MINUTES", help="stop in time; run again to go on"
    )
    run.add_argument(
        "--run-limit", type=float, default=None, metavar="MINUTES", help="a notebook that takes longer has failed"
    )
    run.add_argument("--force", action="store_true", help="run again what is already recorded")
    run.add_argument("--dry-run", action="store_true", help="print the plan, an estimate of its cost, and stop")

    _add_plan(commands.add_parser("status", help="say what is done, running, failed or stale, and why"))

    train = commands.add_parser("train", help="train single rows; under torchrun, on several GPUs at once")
    train.add_argument("rows", nargs="+", metavar="ROW", help="such as a, e, gamma-10, cnn-dkd, mc-full")
    _add_data(train)
    train.add_argument("--fold", type=int, default=1)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--protocol", default="", metavar="P1", help="of DKDFMH: its likely, optimistic protocol")

    fetch = commands.add_parser("download", help="fetch an open corpus, or say how to get another")
    fetch.add_argument("name", metavar="NAME", help="emodb, ravdess; access explained: iemocap, meld, noisex-92")
    fetch.add_argument("--to", default="", metavar="DIR", help="where to put it (default: corpora/NAME in the cache)")
    fetch.add_argument("--url", default="", metavar="URL", help="another address of the same archive")

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
        if options.command in ("reproduce", "status"):
            from ser_kd_utils import reproduce

            return getattr(reproduce, options.command)(options)
        if options.command == "train":
            from ser_kd_utils.train import train

            return train(options)
        if options.command == "download":
            from ser_kd_utils.data.download import download

            return download(options.name, options.to, options.url)
        if options.command == "explain":
            from ser_kd_utils.explain import explain

            return explain(options)
        from ser_kd_utils.tables import update_readme

        return update_readme(check=options.check)
    except (ValueError, OSError) as error:
        print(f"ser-kd: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
