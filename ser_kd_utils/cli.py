"""The `ser-kd` command. Heavy imports wait until a command needs them: `ser-kd --help` is instant.

The help of each command ends with its line of these:

    ser-kd reproduce --corpus emodb --data-root DATA --noise-dir NOISE
    ser-kd status --corpus emodb --data-root DATA --seeds 0-4
    ser-kd train a e --fold 2 --seed 1
    ser-kd download emodb --to DATA
    ser-kd explain mlkd "(e)" "UA noisy" --corpus emodb
    ser-kd publish --corpus emodb --to EVIDENCE
    ser-kd compare --page comparison.md
    ser-kd predict recording.wav --noise babble --snr 0
    ser-kd export RUN --to MODEL --format onnx-int8
"""

import argparse
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

from ser_kd_utils import __version__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise ValueError, so that `main` prints one line as for all other errors."""
        wrong = re.search(r"(?:unrecognized arguments: |invalid choice: ')([\w-]+)", message)
        meant = did_you_mean(wrong[1], [*COMMANDS, *(f"--{name}" for name in OPTIONS)]) if wrong else ""
        raise ValueError(f"{message}{meant} (see `{self.prog} --help`)")


def did_you_mean(wrong: str, choices: Iterable[str]) -> str:
    """The question that follows a mistyped word, or "" if no choice is similar."""
    return "".join(f"; did you mean {near}?" for near in get_close_matches(wrong, choices, 1))


def _numbers(text: str) -> tuple[int, ...]:
    """`1,3-5` -> (1, 3, 4, 5)."""
    ends = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
    numbers = [number for end in ends if end for number in range(int(end[1]), int(end[2] or end[1]) + 1)]
    if not (all(ends) and numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2 or 1-5")
    return tuple(dict.fromkeys(numbers))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


CORPORA = (
    "demo", "iemocap", "iemocap-dev-speakers", "iemocap-improvised", "meld", "meld-4", "emodb", "ravdess", "manifest",
)  # fmt: skip
# What every experiment takes.
SHARED = ("corpus", "name", "profile", "fold", "seed", "data_root", "noise_dir", "results", "overrides")
# Default, help and more of each option, and in capitals of what has its place in the command.
OPTIONS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "VARIANT": (None, "such as a, e, gamma-10, cnn-dkd, mc-full", {"nargs": "+"}),
    "NAME": (None, "emodb or ravdess; for iemocap, meld, noisex-92: how to get them", {}),
    "TABLE": ("", "such as mlkd, or a table's file (default: list tables)", {"nargs": "?"}),
    "ROW": ("", "such as '(e)' (default: list rows and columns)", {"nargs": "?"}),
    "COLUMN": ("", "such as 'UA noisy' (default: all)", {"nargs": "?"}),
    "FOLDER": ("", "your results (default: where reproduce wrote them)", {"nargs": "?"}),
    "corpus": ("demo", f"one of {', '.join(CORPORA)} (default: demo, made on first use)", {}),
    "name": ("", "name of the results of --corpus manifest (default: that of its CSV file)", {}),
    "profile": ("tiny", "tiny: small, CPU; whisper: pre-trained; paper: wav2vec2-base, GPU", {}),
    "results": ("", "the folder of results (default: results/local)", {"metavar": "DIR"}),
    "set": ([], "change a setting of the profile, such as mlkd.epochs=2; may be repeated",
            {"action": "append", "dest": "overrides", "metavar": "METHOD.NAME=VALUE"}),
    "data-root": ("", "the folder of the corpus (manifest: its CSV file)", {"metavar": "DIR"}),
    "noise-dir": ("", "a folder of noise recordings (default: generated noise)", {"metavar": "DIR"}),
    "speech-dir": ("", "a folder of unlabelled speech, for the ablations that use it", {"metavar": "DIR"}),
    "folds": ((), "such as 1,2 or 1-5 (default: all; of the demo the first)", {"type": _numbers, "metavar": "LIST"}),
    "seeds": ((0,), "such as 0,1,2 or 0-4 (default: 0)", {"type": _numbers, "metavar": "LIST"}),
    "only": ("", "notebook numbers, such as 01,09 (default: all)", {"metavar": "LIST"}),
    "ablations": ("", "names, or none (default: all; of the demo one for each method)", {"metavar": "LIST"}),
    "workers": (0, "runs at a time on this machine (default: one a core or GPU)", {"type": _count, "metavar": "N"}),
    "scheduler": ("", "spread the runs over a running Dask cluster", {"metavar": "ADDRESS"}),
    "time-limit": (math.inf, "stop in time; the same command continues", {"type": float, "metavar": "MINUTES"}),
    "run-limit": (math.inf, "a notebook that takes longer counts as failed", {"type": float, "metavar": "MINUTES"}),
    "force": (False, "run again what is already recorded", {"action": "store_true"}),
    "fold": (1, "the fold that is tested (default: 1)", {"type": int, "metavar": "N"}),
    "seed": (0, "the seed of everything random (default: 0)", {"type": int, "metavar": "N"}),
    "protocol": ("", "another protocol of the method, such as DKDFMH's P1", {}),
    "to": ("", "the folder to write to", {"metavar": "DIR"}),
    "url": ("", "another address of the archive", {}),
    "json": (False, "print JSON", {"action": "store_true"}),
    "page": ("", "also write the comparison as a Markdown page", {"metavar": "FILE"}),
    "FILE": (None, "a recording, a folder of them, or - for a WAV on standard input", {"nargs": "+"}),
    "RUN": (None, "the folder of one of your runs, such as results/local/demo-tiny/runs/<id>", {}),
    "model": ("", "the network's folder (default: the student that comes with the suite)", {"metavar": "DIR"}),
    "noise": ("", "first mix in noise of this type, such as babble, white, pink", {"metavar": "KIND"}),
    "snr": (0.0, "the SNR of that noise (default: 0)", {"type": float, "metavar": "DB"}),
    "plot": ("", "draw the probabilities over time", {"metavar": "FILE"}),
    "format": (argparse.SUPPRESS, "predict: table, json or csv; export: onnx, onnx-int8, hub or hub-float16", {}),
}  # fmt: skip

RESULTS = ("corpus", "name", "profile", "results", "set")
DATA = (*RESULTS, "data-root", "noise-dir", "speech-dir")
PLAN = (*DATA, "folds", "seeds", "only", "ablations")
RUN = (*PLAN, "workers", "scheduler", "time-limit", "run-limit", "force")
PREDICT = ("FILE", "model", "format", "noise", "snr", "noise-dir", "plot")
# What it calls, help and options of each command.
COMMANDS = {
    "reproduce": ("reproduce.schedule:reproduce", "Run the notebooks and write records, tables and figures.", RUN),
    "status": ("reproduce.plan:status", "Show what is done, running, stale or published, and what is left.", PLAN),
    "train": (
        "cli:train",
        "Train variants, in one process or with torchrun.",
        ("VARIANT", *DATA, "fold", "seed", "protocol"),
    ),
    "download": (
        "data.download:download",
        "Download an open corpus, or explain how to get another.",
        ("NAME", "to", "url"),
    ),
    "explain": ("reproduce.explain:explain", "Show the records behind a number.", ("TABLE", "ROW", "COLUMN", *RESULTS)),
    "publish": ("reproduce.publish:publish", "Copy your records to the committed evidence.", (*RESULTS, "to")),
    "compare": (
        "reproduce.compare:compare",
        "Compare results with the committed evidence.",
        ("FOLDER", *RESULTS, "json", "page"),
    ),
    "predict": ("deploy.predict:predict", "Classify the emotion in recordings.", PREDICT),
    "export": ("deploy.export:export", "Write a network as ONNX or for transformers.", ("RUN", "to", "format")),
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; it raises ValueError for arguments it does not accept."""
    top = _Parser(prog="ser-kd", description="Reproduce knowledge distillation for speech emotion recognition.")
    top.add_argument("--version", action="version", version=f"ser-kd {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, description, options) in COMMANDS.items():
        example = re.search(rf"ser-kd {name} .+", __doc__ or "")  # python -OO leaves no docstring
        words = {"help": description, "description": description, "epilog": f"example: {example[0]}" if example else ""}
        command = commands.add_parser(name, **words)
        for option in options:
            default, text, more = OPTIONS[option]
            flag = option.lower() if option.isupper() else f"--{option}"
            command.add_argument(flag, default=default, help=text, **more)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 2 if the request cannot be carried out, else that of the command."""
    warnings.showwarning = lambda message, *_: print(f"ser-kd: {message}", file=sys.stderr)  # without a line of code
    try:
        options = parser().parse_args((sys.argv[1:] if arguments is None else arguments) or ["--help"])
        call = resolve_name(f"ser_kd_utils.{COMMANDS[vars(options).pop('command')][0]}")
        if "corpus" in options:
            options.overrides, own = ", ".join(options.overrides), options.corpus == "manifest"
            options.name = options.name or Path(getattr(options, "data_root", "")).stem * own
            if options.name in CORPORA or (options.name and not own):
                said = f"a name is for --corpus manifest, and none of {', '.join(CORPORA)}"
                raise ValueError(f"--name {options.name}: {said}")
        code = call(options) if "corpus" in options else call(**vars(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"ser-kd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ser-kd: interrupted; the same command goes on from what was recorded.", file=sys.stderr, flush=True)
        os._exit(130)  # kernels end with this process, for which threads may still wait


def train(options: argparse.Namespace) -> int:
    """Train the variants that are not recorded yet; notebooks then find their records."""
    from ser_kd_utils.methods import METHODS, settings_of
    from ser_kd_utils.metrics import score

    settings = settings_of(options.profile, options.overrides)
    methods = {name: method for method in METHODS.values() for name in method.variants(settings)}
    if unknown := [name for name in options.variant if name not in methods]:
        near = did_you_mean(unknown[0], methods)
        raise ValueError(f"No variant {', '.join(unknown)}{near}: choose among {', '.join(methods)}.")
    if lost := [name for name in options.variant if options.protocol not in ("", *methods[name].protocols)]:
        raise ValueError(f"{', '.join(lost)}: not trained under --protocol {options.protocol}.")
    for name in options.variant:
        own = {each for notebook in methods[name].notebooks for each in notebook.parameters} - {"ablations"}
        given = (*SHARED, *own, *["protocol"] * bool(options.protocol))
        run = methods[name].experiment_class(**{each: getattr(options, each) for each in given}).run(name)
        if os.environ.get("RANK", "0") == "0":  # of the processes of torchrun one says it
            best = run.predictions.query("checkpoint == 'best' and in_range")
            parts = {"clean": best["snr_db"].isna(), "noisy": best["snr_db"].notna()}
            told = ", ".join(f"{part} {100 * score(best[rows]):.1f}" for part, rows in parts.items())
            kept = f"epoch {run.info['best_epoch']} of {len(run.history)}"
            print(f"{name}: UA {told}; {kept}\n  {run.folder}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
