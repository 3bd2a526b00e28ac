"""The `ser-kd` command. Heavy imports wait until a command needs them: `ser-kd --help` is instant.

The commands, their options and help texts are in cli.toml.
"""

import argparse
import os
import re
import sys
import tomllib
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import NoReturn

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


TOLD = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
CORPORA, SHARED, COMMANDS, OPTIONS = (TOLD[name] for name in ("corpora", "shared", "commands", "options"))
TYPES = {"int": int, "float": float, "numbers": _numbers, "count": _count}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; it raises ValueError for arguments it does not accept."""
    top = _Parser(prog="ser-kd", description="Reproduce knowledge distillation for speech emotion recognition.")
    top.add_argument("--version", action="version", version=f"ser-kd {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, told in COMMANDS.items():
        words = {"help": told["help"], "description": told["help"], "epilog": f"example: {told['example']}"}
        command = commands.add_parser(name, **words)
        for option in told["options"]:
            more = {"default": "", **OPTIONS[option]}
            more |= {"help": more["help"].format(corpora=", ".join(CORPORA)), "type": TYPES.get(more.get("type"))}
            given = {key: value for key, value in more.items() if value is not None}
            command.add_argument(option.lower() if option.isupper() else f"--{option}", **given)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 2 if the request cannot be carried out, else that of the command."""
    warnings.showwarning = lambda message, *_: print(f"ser-kd: {message}", file=sys.stderr)  # without a line of code
    try:
        options = parser().parse_args((sys.argv[1:] if arguments is None else arguments) or ["--help"])
        call = resolve_name(f"ser_kd_utils.{COMMANDS[vars(options).pop('command')]['call']}")
        if "corpus" in options:
            options.overrides, own = ", ".join(options.overrides), options.corpus == "manifest"
            options.name = options.name or Path(getattr(options, "data_root", "")).stem * own
            if options.name in CORPORA or (options.name and not own):
                said = f"a name is for --corpus manifest, and none of {', '.join(CORPORA)}"
                raise ValueError(f"--name {options.name}: {said}")
        given = {name: value for name, value in vars(options).items() if value != ""}
        code = call(options) if "corpus" in options else call(**given)
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
            ua = ", ".join(f"{part} {100 * score(best[rows]):.1f}" for part, rows in parts.items())
            print(f"{name}: UA {ua}; epoch {run.info['best_epoch']} of {len(run.history)}\n  {run.folder}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
