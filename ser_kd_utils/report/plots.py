"""Figures and audio players for the notebooks: colour-blind safe, readable in print.

A figure that draws variants takes `variants`, by name, as `methods.variants_of` returns them (label, title, noisy), and
`styles`, colour, marker and line by name, as a method declares them.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure

from ser_kd_utils.files import PACKAGE
from ser_kd_utils.metrics import interval, score
from ser_kd_utils.report.differences import OVER_UTTERANCES
from ser_kd_utils.report.tables import Cell, Table

# Okabe & Ito (2008), and a marker each, so that they differ without colour too
PROTOCOL_STYLES = {
    "": ("#0072B2", "o", ""),
    "P1": ("#D55E00", "o", "P1, random split"),
    "P2": ("#0072B2", "s", "P2, the corpus's own split"),
}


def use_style() -> None:
    """One look for all figures; tables whose text is not cut and stands at the left; our errors as one paragraph."""
    if shell := get_ipython():
        shell.set_custom_exc((ValueError, OSError), _in_one_paragraph)
    pd.set_option("display.max_colwidth", None)
    display(HTML("<style>.dataframe :is(td, th) {text-align: left !important}</style>"))
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9, palette="colorblind")
    look = {"figure.dpi": 66, "savefig.dpi": 150, "savefig.bbox": "tight", "axes.titleweight": "bold"}
    # the name of a class or a noise may hold dollar signs, which are no mathematics
    plt.rcParams.update(look | {"figure.constrained_layout.use": True, "text.parse_math": False})


def _in_one_paragraph(shell: Any, kind: type, error: Any, trace: Any, tb_offset: int | None = None) -> None:
    """Show what this package refuses without a traceback, and name the notebook's parameters in place of options."""
    if Path(extract_tb(trace)[-1].filename).is_relative_to(PACKAGE):
        text = re.sub(r"--([a-z-]+)", lambda option: option[1].replace("-", "_"), f"{kind.__name__}: {error}")
        error._render_traceback_ = lambda: textwrap.wrap(text, 88, break_on_hyphens=False)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def _untrained(table: pd.DataFrame) -> list[float]:
    """The SNRs outside the range heard in training."""
    return sorted(table.loc[~table["in_range"], "snr_db"].unique())


def snr_curves(
    predictions: Mapping[str, pd.DataFrame], variants: Mapping[str, Any],
    styles: Mapping[str, Sequence[str]], chance: float, per_type: bool = False,
) -> Figure:  # fmt: skip
    """UA against SNR with 95 % bootstrap intervals, one line per variant; clean speech stands at the right end.

    predictions: tables with utterance, condition, snr_db, in_range, label, prediction; chance: UA of guessing, a dotted
    line. per_type: one panel per noise type instead of their mean. A grey band marks the SNRs outside the trained
    range, where a variant was trained in noise at all.
    """
    anyone = next(iter(predictions.values()))
    kinds = sorted(set(anyone["condition"]) - {"clean"})
    panels = {kind: [kind] for kind in kinds} if per_type else {"mean of the noise types": kinds}
    levels = [*sorted(anyone["snr_db"].dropna().unique()), np.inf]
    untrained = _untrained(anyone) if any(variants[name].noisy for name in predictions) else []
    size = (3.0 * len(panels), 3.8) if per_type else (6.4, 4.6)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        for place, (name, table) in enumerate(predictions.items()):
            part = table[table["condition"].isin(["clean", *panel])]
            scores = [interval(some) for _, some in part.groupby(part["snr_db"].fillna(np.inf))]  # the lowest SNR first
            shift = 0.06 * (place - (len(predictions) - 1) / 2)  # the bars of variants do not hide each other
            colour, marker, line = styles[name]
            style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5, "linewidth": 1.5}
            style |= {"elinewidth": 0.9, "capsize": 2, "label": f"{variants[name].label} {variants[name].title}"}
            value, errors = _errors(100 * np.array(scores))
            axis.errorbar(np.arange(len(levels)) + shift, value, errors, **style)
        axis.axhline(100 * chance, color="grey", linestyle=":", linewidth=1)
        for place in map(levels.index, untrained):
            axis.axvspan(place - 0.5, place + 0.5, color="0.92", zorder=0, linewidth=0)
            style = {"rotation": 90, "ha": "center", "va": "top", "color": "0.35", "fontsize": "small"}
            axis.text(place, 0.98, "not trained", transform=axis.get_xaxis_transform(), **style)
        axis.set_xticks(range(len(levels)), [*(f"{level:.0f}" for level in levels[:-1]), "clean"])
        axis.set(xlabel="SNR (dB)", title=title, xlim=(-0.5, len(levels) - 0.5))
    axes[0, 0].set(ylabel="UA (%)", ylim=(max(0, 100 * chance - 8), 100))
    columns = len(predictions) if per_type else 2  # outside the axes, where it covers no curve
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize="small")
    return figure


def _errors(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values, and how far the interval reaches to both sides, of (value, low, high); rounding may put an end inside."""
    value, low, high = cells.T
    return value, np.clip([value - low, high - value], 0, None)


def _heat_maps(
    tables: Mapping[str, pd.DataFrame], columns: int, form: str, top: float | None = None, bar: str = "", **look: Any
) -> Figure:
    """A heat map for each named table, `columns` of them side by side.

    form: of the numbers; top: the end of a scale that begins at 0, where none is given the scale is symmetric about 0
    and blue is more; bar: what the colours are, for a bar of colours.
    """
    rows, (high, wide) = -(-len(tables) // columns), next(iter(tables.values())).shape
    size = (columns * (1.2 + 0.6 * wide) + bool(bar), rows * (1.2 + 0.45 * high))  # in inches; a bar takes one
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    limit = top or max(1, *(table.abs().max(axis=None) for table in tables.values()))  # under a point is pale
    look |= {"vmin": 0 if top else -limit, "vmax": limit, "cmap": "Blues" if top else "RdBu"}
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=True):
        numbers = table.round(int(form[-2])) + 0.0  # no "-0"
        sns.heatmap(table, annot=numbers, fmt=form, cbar=False, xticklabels=True, yticklabels=True, ax=axis, **look)
        axis.set_title(name)
        axis.tick_params(axis="y", rotation=0)
        axis.grid(False)
        axis.label_outer()
    if bar:
        figure.colorbar(axes[0, 0].collections[0], ax=axes, label=bar)
    return figure


def _confused(table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Percent of each true class."""
    named = {"rownames": ["true"], "colnames": ["predicted"]}
    found = pd.crosstab(table["label"], table["prediction"], normalize="index", **named)
    return 100 * found.reindex(index=labels, columns=labels, fill_value=0)


def confusions(tables: Mapping[str, pd.DataFrame], labels: Sequence[str], columns: int | None = None) -> Figure:
    """Confusion matrices in percent of the true class, one panel per named table of predictions.

    columns: panels side by side, those of the next row below them; all of them in one row unless told.
    """
    matrices = {name: _confused(table, labels) for name, table in tables.items()}
    return _heat_maps(matrices, columns or len(tables), ".0f", top=100)


def confusion_changes(tables: Mapping[str, pd.DataFrame], base: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Each named table's confusion matrix less that of `base`, in points of the true class; blue where there is more.

    Inside the outlined diagonal more is better, outside it worse. base: predictions, as the tables.
    """
    changes = {name: _confused(table, labels) - _confused(base, labels) for name, table in tables.items()}
    figure = _heat_maps(changes, len(tables), "+.0f")
    for axis in figure.axes:
        for place in range(len(labels)):
            axis.add_patch(plt.Rectangle((place, place), 1, 1, fill=False, ec="black", linewidth=1.5, clip_on=False))
    return figure


def gain_map(first: pd.DataFrame, second: pd.DataFrame) -> Figure:
    """UA of the first less UA of the second in points, by noise type and SNR; blue where the first is better.

    Tables of predictions as for `snr_curves`, over the same utterances and conditions. The last row is the mean of the
    noise types and, of clean speech, its own; SNRs outside the trained range are marked.
    """
    tables = (table.fillna({"snr_db": np.inf}).groupby(["condition", "snr_db"]) for table in (first, second))
    ours, theirs = (pd.Series({cell: 100 * score(part) for cell, part in table}).unstack() for table in tables)
    points = (ours - theirs).sort_index(axis="columns", ascending=False)
    clean = points.loc["clean", np.inf]
    points = points.drop("clean")
    points.loc["mean"] = points.mean().fillna(clean)  # of clean speech there is no type to average
    untrained = _untrained(first)
    names = ["clean" if np.isinf(snr) else f"{snr:.0f}" + "\nnot trained" * (snr in untrained) for snr in points]
    points = points.set_axis(pd.Index(names, name="SNR (dB)"), axis="columns").rename_axis(index="")
    figure = _heat_maps({"": points}, 1, "+.1f", bar="UA, points", linewidths=0.5)
    figure.axes[0].axhline(len(points) - 1, color="black", linewidth=1.5)
    return figure


def ablation_points(table: Table, axis_label: str) -> Figure:
    """A dot with its 95 % interval for each line of a table of differences, in its order; axis_label: of what.

    The interval is that over folds, or of one fold over utterances; a grey bar is the one over utterances in any case.
    The picture reaches twice as far as the grey bars: intervals over two folds, of a hundred points, run out of it.
    """
    found = [[cell for cell in line.values() if cell.selection and cell.selection.difference] for line in table.lines]
    label = f"{axis_label}; grey: {OVER_UTTERANCES}"
    figure = _dots([table.key(line) for line in table.lines], {label: [cells[0] for cells in found]})
    figure.axes[0].axvline(0, color="black", linewidth=1)
    ends = np.array([(line[OVER_UTTERANCES].low, line[OVER_UTTERANCES].high) for line in table.lines]).T
    figure.axes[0].hlines(range(len(table.lines)), *ends, color="0.85", linewidth=8, zorder=0)
    figure.axes[0].set_xlim(np.clip(figure.axes[0].get_xlim(), *(2 + 2 * np.abs(ends).max()) * np.array([-1, 1])))
    return figure


def optimism_steps(table: Table) -> Figure:
    """WA and UA with 95 % intervals, a dot per rung of DKDFMH's tables of optimism; P1 and P2 in two colours."""
    names = [f"{line['evaluation'].text}  {line['rung'].text}" for line in table.lines]
    figure = _dots(names, {f"{metric} (%)": [line[metric] for line in table.lines] for metric in ("WA", "UA")})
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    return figure


def _dots(names: Sequence[str], panels: Mapping[str, Sequence[Cell]]) -> Figure:
    """A panel for each label, in it a dot with its interval for each cell, the first on top, by protocol."""
    size = (2.5 + 3.8 * len(panels), 1.2 + 0.32 * len(names))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, (label, cells) in zip(axes[0], panels.items(), strict=True):
        for protocol, (colour, marker, words) in PROTOCOL_STYLES.items():
            own = {place: cell for place, cell in enumerate(cells) if cell.selection.protocol == protocol}
            style = {"fmt": marker, "color": colour, "markersize": 5.5, "capsize": 3, "linewidth": 1.3, "label": words}
            if own:
                value, errors = _errors(np.array([(cell.value, cell.low, cell.high) for cell in own.values()]))
                axis.errorbar(value, [*own], xerr=errors, **style)
        axis.grid(axis="y", visible=False)
        axis.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axes[0, 0].set_yticks(range(len(names)), names)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """`name`.png below `folder`/figures."""
    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    figure.savefig(target / f"{name}.png")
