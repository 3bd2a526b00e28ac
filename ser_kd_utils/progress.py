"""A line that rewrites itself while something takes long: in a notebook, in a terminal, and for `ser-kd reproduce`."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# Names the file in which a notebook leaves its line for `ser-kd reproduce`, which runs it.
FILE = "SER_KD_PROGRESS"
# Between two versions of the line.
SECONDS = 0.5


class Line:
    """What is said of one training: an output of its notebook's cell, or the last line of a terminal."""

    def __init__(self):
        from IPython import display, get_ipython  # a terminal's first answer must not wait for it

        self.next, self.shown, in_notebook = 0.0, False, hasattr(get_ipython(), "kernel")
        self.display = display.display if in_notebook else lambda *_, **__: None

    def write(self, text: str) -> None:
        """Put `text` in the place of what the line said before."""
        self.display({"text/plain": text}, raw=True, display_id=f"line-{id(self)}", update=self.shown)
        self.shown = True
        rewrite(text, sys.stderr)
        if os.environ.get(FILE):
            Path(os.environ[FILE]).write_text(text, encoding="utf-8")


# The names of what goes on now, and their one line: a student's training may wait for its teacher's.
_going: list[tuple[str, Line]] = []


@contextmanager
def line(name: str) -> Iterator[Line]:
    """The line of what is done inside, which begins with `name`; a terminal's is blank again afterwards.

    Inside another one it is the same line.
    """
    _going.append((name, _going[-1][1] if _going else Line()))
    try:
        yield _going[-1][1]
    finally:
        _going.pop()
        rewrite("", sys.stderr)


def show(doing: str, done: float, seconds: float) -> None:
    """Rewrite the line, unless that was done just now or there is none.

    doing: what goes on; done: the part of it that is done, from 0 to 1, after so many seconds.
    """
    name, line = _going[-1] if _going else ("", None)
    if line and time.monotonic() >= line.next:
        left = seconds * (1 - done) / done if done else 0
        in_words = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        line.write(f"{name}: {doing}" + f", about {in_words} left" * bool(left))
        line.next = time.monotonic() + SECONDS


def over(items: Sequence[Any], doing: str) -> Iterator[Any]:
    """The items, one after the other, with a line that counts them."""
    started = time.monotonic()
    for index, item in enumerate(items):
        show(f"{doing} {index + 1} of {len(items)}", index / len(items), time.monotonic() - started)
        yield item


def rewrite(text: str, stream: TextIO) -> None:
    """Put `text`, cut to the terminal's width, in the place of its last line.

    Nothing is written where it is no terminal, and by all processes of torchrun but the first.
    """
    if stream.isatty() and os.environ.get("RANK", "0") == "0":
        stream.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        stream.flush()
