"""Every number an experiment depends on: its value in each profile, its type, and where it comes from.

`tiny` trains small networks from random weights on two CPU cores in minutes; `whisper` starts from a pre-trained
encoder that a CPU can train; `paper` starts from wav2vec2-base and wants a GPU. Any corpus goes with any profile.
Notebooks print `table()`, so that no setting is hidden. Each method's settings are in its own folder; here is what they
have in common, and the noise that they share.
"""

import ast
import dataclasses
import re
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, Self

import pandas as pd
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

PROFILES = ("tiny", "whisper", "paper")

PUBLISHED = "published"
CODE = "code of cited work"
ASSUMED = "assumed"

# The decorator of all settings: a value of another type is an error and is not converted.
strict = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decibels = Annotated[float, Field(allow_inf_nan=False)]
Precision = Literal["float32", "bf16"]
GRID = (20, 15, 10, 5, 0, -5)  # SNRs of the tests in dB


def setting(source: str, note: str, tiny: Any, paper: Any = None, whisper: Any = None) -> Any:
    """A field whose value depends on the profile; `source` is PUBLISHED, CODE or ASSUMED, and `note` gives details.

    paper, whisper: where they are not the value of profile tiny.
    """
    values = {"tiny": tiny, "whisper": tiny if whisper is None else whisper, "paper": tiny if paper is None else paper}
    return field(metadata={"values": values, "source": source, "note": note})


@strict
class Settings:
    """Base of all settings: build with `of(profile)`, change single values by keyword."""

    # The name before the dot in an override: `mlkd` in `mlkd.epochs=2`.
    group: ClassVar[str]

    @classmethod
    def of(cls, profile: str, **overrides: Any) -> Self:
        """The settings of a profile with some values changed.

        Raises ValueError for an unknown profile, an unknown setting, or a value of the wrong type or out of range.
        """
        if profile not in PROFILES:
            raise ValueError(f"Unknown profile {profile!r}: choose one of {', '.join(PROFILES)}.")
        fields = {f.name: f.metadata["values"][profile] for f in dataclasses.fields(cls)}
        return cls.checked(fields | overrides)

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Self:
        """Settings of these values. Raises ValueError with one line for each value that cannot be used."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ValueError("; ".join(cls._complaint(each) for each in error.errors())) from None

    @classmethod
    def _complaint(cls, error: Any) -> str:
        if error["type"] == "unexpected_keyword_argument":
            known = ", ".join(f.name for f in dataclasses.fields(cls))
            return f"Unknown setting {cls.group}.{error['loc'][0]}: choose among {known}"
        if not error["loc"]:
            return error["msg"].removeprefix("Value error, ")
        name = ".".join(map(str, (cls.group, *error["loc"])))
        return f"{name}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"

    def replace(self, **overrides: Any) -> Self:
        """The same with some values changed. Raises ValueError as `of`."""
        return self.checked({f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | overrides)

    def table(self) -> pd.DataFrame:
        """The table that a notebook prints: setting, value, source, note.

        The source is that of the paper profile's value; any other value is assumed, and the note says what it departs
        from.
        """
        rows = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            source = f.metadata["source"] if value == f.metadata["values"]["paper"] else ASSUMED
            rows.append((f.name, value, source, f.metadata["note"]))
        return pd.DataFrame(rows, columns=["setting", "value", "source", "note"]).set_index("setting")


@strict
class NoiseSettings(Settings):
    """Noise in training and test (notebook 00), shared by the methods."""

    group = "noise"

    train_snr_db: tuple[Decibels, Decibels] = setting(CODE, "drawn uniformly, as RobustDistiller", (0.0, 20.0))
    train_types: tuple[str, ...] = setting(ASSUMED, "noise types heard in training; empty: all of them", ())
    test_snr_db: tuple[Decibels, ...] = setting(
        ASSUMED, "EUSIPCO 2019 IEMOCAP study and one below training; tiny: fewer", (20, 10, 0, -5), GRID, GRID
    )
    speech_level: Literal["active", "overall"] = setting(ASSUMED, "active frames; RobustDistiller: overall", "active")

    def __post_init__(self) -> None:
        if self.train_snr_db[0] > self.train_snr_db[1]:
            raise ValueError(f"noise.train_snr_db={self.train_snr_db!r}: give the lower SNR first")
        if not self.test_snr_db or len(set(self.test_snr_db)) < len(self.test_snr_db):
            raise ValueError(f"noise.test_snr_db={self.test_snr_db!r}: give one or more SNRs, each once")


def parse_overrides(text: str) -> dict[str, dict[str, Any]]:
    """`"mlkd.epochs=2, teacher.checkpoint='folder'"` -> {"mlkd": {"epochs": 2}, "teacher": {"checkpoint": "folder"}}.

    Values are Python literals; anything else is text. Raises ValueError unless it is a list of METHOD.NAME=VALUE, and
    for a setting that is given twice.
    """
    first, *parts = map(str.strip, re.split(r"(?:^|,)\s*([A-Za-z]\w*)\.([A-Za-z]\w*)\s*=", text.strip().rstrip(",")))
    if first or not all(parts):
        raise ValueError(f"{text!r} is not a list of settings such as mlkd.epochs=2, teacher.epochs=4")
    found: dict[str, dict[str, Any]] = {}
    for group, name, value in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if name in found.setdefault(group, {}):
            raise ValueError(f"{group}.{name} is given twice")
        try:
            found[group][name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[group][name] = value
    return found
