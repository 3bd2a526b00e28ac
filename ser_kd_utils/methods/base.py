"""What a method is to the rest of the suite: its variants, notebooks, settings, experiment and tables."""

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pkgutil import resolve_name
from typing import Any

from ser_kd_utils.report import label_of


@dataclass(frozen=True)
class Variant:
    """One line of a method's tables: what is trained, and the question it answers.

    name: its public label, such as "e" or "cnn-dkd"; kind: "main", or the name of the group of ablations it belongs to;
    role: "teacher" or "student", whose size the network has; noisy: whether it is trained in noise; teacher: the
    variant it is distilled from or starts from, "" for none; baseline: the variant it is compared with; overrides:
    the settings of its method in which it differs from the profile; held_out_noise: one noise type, another in each
    fold, is left out of training; situation: for pairs with and without distillation, under what circumstances;
    protocols: marks of those it is trained under beside its method's usual one.
    """

    name: str
    method: str
    title: str
    question: str
    kind: str = "main"
    role: str = "student"
    noisy: bool = True
    teacher: str = ""
    baseline: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    held_out_noise: bool = False
    situation: str = ""
    protocols: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name as tables and figures write it."""
        return label_of(self.name)


@dataclass(frozen=True)
class Notebook:
    """A notebook that runs once for each fold and seed, and trains the variants of some kinds.

    needs: notebooks of the same fold and seed whose records it starts from or compares with; parameters: what it takes
    beside the parameters of all notebooks.
    """

    name: str
    kinds: tuple[str, ...]
    needs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A method. Its settings, variants, experiment and tables are given by name and loaded when they are needed.

    package: that of the method, such as "ser_kd_utils.methods.mlkd"; settings, experiment: names of classes in its
    modules `settings` and `experiment`. Its module `variants` has a function `variants(settings)` that takes the
    settings of all methods by group and returns the variants by name; its module `tables` a function `tables(runs)`
    that returns its declared tables. protocols: the marks of those it trains under, the first of them the one that
    ablations use; demo_ablations: those the demo trains. `styles.csv` holds how figures draw variants.
    """

    name: str
    package: str
    notebooks: tuple[Notebook, ...]
    settings: str
    experiment: str
    protocols: tuple[str, ...] = ("",)
    demo_ablations: tuple[str, ...] = ()

    @property
    def styles(self) -> dict[str, list[str]]:
        """Colour, marker and line of variants in figures, by name."""
        lines = files(self.package).joinpath("styles.csv").read_text(encoding="utf-8").splitlines()[1:]
        return {name: look for name, *look in csv.reader(lines)}

    @property
    def settings_class(self) -> Any:
        return resolve_name(f"{self.package}.settings:{self.settings}")

    @property
    def experiment_class(self) -> Any:
        return resolve_name(f"{self.package}.experiment:{self.experiment}")

    def variants(self, settings: Mapping[str, Any]) -> dict[str, Variant]:
        """Every variant of these settings by name, main ones first; settings: by group, as from `settings_of`."""
        return resolve_name(f"{self.package}.variants:variants")(settings)

    def tables(self, runs: Any) -> list[Any]:
        """The method's tables (`report.tables.Table`) from all records of a results folder."""
        return resolve_name(f"{self.package}.tables:tables")(runs)


def choose(asked: str, variants: Mapping[str, Variant], synthetic: bool, demo: Collection[str] = ()) -> list[str]:
    """The names listed in `asked`, each with its baseline; "" for all, of synthetic speech those in `demo`.

    variants: the ablations to choose among, by name. Raises ValueError for a name that is none of them.
    """
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in names if name not in variants]:
        message = f"No ablation {', '.join(unknown)}: choose among {', '.join(variants)}"
        raise ValueError(f"{message} (more with --speech-dir: what needs unlabelled speech).")
    names = names or [name for name in variants if name in demo or not synthetic]
    return [name for name in variants if name in names or any(variants[other].baseline == name for other in names)]
