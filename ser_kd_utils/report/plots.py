"""Figures and audio players for the notebooks: colour-blind safe, readable in print.

A figure that draws variants takes `variants`, by name, as `methods.variants_of` returns them (label, title, noisy), and
`styles`, colour, marker and line by name, as a method declares them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.metrics import interval, score
from ser_kd_utils.report.differences import difference_of
from ser_kd_utils.report.tables import Table

# Okabe & Ito (2008), and a marker each, so that they differ without colour too
OPTIMISM_STYLES = (("P1", "#D55E00", "o", "P1, random split"), ("P2", "#0072B2", "s", "P2, the corpus's own split"))
CLASS_MARKERS = "os^DvPX*"
Styles = Mapping[str, tuple[str, str, str]]


def use_style() -> None:
    """One look for all figures, and tables whose text is not cut."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9, palette="colorblind")
    plt.rcParams.update({"figure.dpi": 72, "savefig.dpi": 150, "savefig.bbox": "tight", "axes.titleweight": "bold"})


def player(wave: np.ndarray, label: str):
    """An audio player for the notebook, MP3 inside the page so that the stored notebook stays small.

    wave: float (samples,) at 16 kHz, scaled to its peak; label: what is heard.
    """
    from IPython.display import HTML

    buffer = io.BytesIO()
    soundfile.write(buffer, wave / max(np.abs(wave).max(), 1e-6) * 0.9, SAMPLE_RATE, format="MP3")
    data = base64.b64encode(buffer.getvalue()).decode()
    audio = f'<audio controls preload="none" src="data:audio/mpeg;base64,{data}"></audio>'
    style = "display:flex;align-items:center;gap:1em"
    return HTML(f'<div style="{style}"><span style="width:16em">{label}</span>{audio}</div>')


def log_mel(wave: np.ndarray, bands: int = 40) -> np.ndarray:
    """Log-mel spectrogram in dB, (bands, frames): 25 ms Hann windows every 10 ms, 0 to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(257, bands, 0, SAMPLE_RATE / 2, SAMPLE_RATE)
    window = window_function(400, "hann")
    return spectrogram(wave, window, 400, 160, fft_length=512, power=2.0, mel_filters=filters, log_mel="dB")


def views(waves: Mapping[str, np.ndarray]) -> Figure:
    """Waveforms above log-mel spectrograms, one column per named wave (samples,), with common scales."""
    figure, axes = plt.subplots(2, len(waves), figsize=(3.4 * len(waves), 4), sharex=True, sharey="row", squeeze=False)
    spectra = [log_mel(wave) for wave in waves.values()]
    top = max(spectrum.max() for spectrum in spectra)
    for upper, lower, (name, wave), spectrum in zip(*axes, waves.items(), spectra, strict=True):
        upper.plot(np.arange(len(wave)) / SAMPLE_RATE, wave, linewidth=0.4, color="#0072B2")
        upper.set_title(_plain(name))
        box = (0, len(wave) / SAMPLE_RATE, 0, len(spectrum))
        look = {"vmin": top - 60, "vmax": top, "cmap": "magma", "interpolation": "nearest"}
        image = lower.imshow(spectrum, origin="lower", aspect="auto", extent=box, **look)
        lower.grid(False)
        lower.set_xlabel("time (s)")
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("mel band")
    figure.tight_layout()
    figure.colorbar(image, ax=axes, label="dB", shrink=0.45, anchor=(0, 0.05), pad=0.02)
    return figure


def _plain(text: str) -> str:
    """For matplotlib, which would typeset what stands between two dollar signs as mathematics."""
    return str(text).replace("$", r"\$")


def noise_spectra(segments: Mapping[str, np.ndarray]) -> Figure:
    """Mean power over frequency of each noise type, (samples,) each, relative to its own maximum."""
    from scipy.signal import welch

    figure, axis = plt.subplots(figsize=(7, 3.2))
    for colour, (name, wave) in zip(sns.color_palette("colorblind"), segments.items(), strict=False):
        hertz, power = welch(wave, SAMPLE_RATE, nperseg=1024)
        level = 10 * np.log10(power[1:] / power.max() + 1e-12)
        axis.plot(hertz[1:] / 1000, level, label=_plain(name), color=colour)
    axis.set(xlabel="frequency (kHz)", ylabel="power (dB re maximum)", ylim=(-70, 3), xlim=(0, 8))
    axis.legend(ncols=2, fontsize="small")
    figure.tight_layout()
    return figure


def learning_curves(histories: Mapping[str, pd.DataFrame], variants: Mapping[str, Any], styles: Styles) -> Figure:
    """Training loss and dev UA by epoch of each variant's run; columns `loss` and `dev_UA`, index epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, history in histories.items():
        colour, _, line = styles[name]
        style = {"color": colour, "linestyle": line, "label": _legend(variants[name])}
        left.plot(history.index, history["loss"], **style)
        right.plot(history.index, 100 * history["dev_UA"], **style)
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="dev UA (%)")
    right.legend(fontsize="small")
    figure.tight_layout()
    return figure


def _legend(variant: Any) -> str:
    return f"({variant.name}) {variant.title}"


def _curve(axis: Axes, table: pd.DataFrame, positions: Mapping[float, float], look: Mapping[str, Any]) -> None:
    """UA over SNR with its interval, clean speech at the right end."""
    points = []
    for snr_db, part in table.groupby(table["snr_db"].fillna(np.inf)):
        value, low, high = interval(part)
        points.append((positions[snr_db], 100 * value, 100 * (value - low), 100 * (high - value)))
    x, y, below, above = np.array(sorted(points)).T
    style = {"markersize": 5, "linewidth": 1.5, "elinewidth": 0.9, "capsize": 2}
    axis.errorbar(x, y, yerr=np.clip([below, above], 0, None), **style, **look)


def _untrained(table: pd.DataFrame) -> list[float]:
    """The SNRs outside the range heard in training."""
    return sorted(table.loc[~table["in_range"], "snr_db"].unique())


def snr_curves(
    predictions: Mapping[str, pd.DataFrame], variants: Mapping[str, Any], styles: Styles, chance: float,
    per_type: bool = False,
) -> Figure:  # fmt: skip
    """UA against SNR with 95 % bootstrap intervals, one line per variant; clean speech stands at the right end.

    predictions: tables with utterance, condition, snr_db, in_range, label, prediction; chance: UA of guessing, a dotted
    line. per_type: one panel per noise type instead of their mean. A grey band marks the SNRs outside the trained
    range, where a variant was trained in noise at all.
    """
    anyone = next(iter(predictions.values()))
    kinds = sorted(set(anyone["condition"]) - {"clean"})
    panels = [[kind] for kind in kinds] if per_type else [kinds]
    levels = [*sorted(anyone["snr_db"].dropna().unique()), np.inf]
    untrained = _untrained(anyone) if any(variants[name].noisy for name in predictions) else []
    size = (3.0 * len(panels), 3.2) if per_type else (6.4, 4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for place, (name, table) in enumerate(predictions.items()):
            shift = 0.06 * (place - (len(predictions) - 1) / 2)  # the bars of variants do not hide each other
            look = dict(zip(("color", "marker", "linestyle"), styles[name], strict=True))
            positions = {level: number + shift for number, level in enumerate(levels)}
            part = table[table["condition"].isin(["clean", *panel])]
            _curve(axis, part, positions, look | {"label": _legend(variants[name])})
        axis.axhline(100 * chance, color="grey", linestyle=":", linewidth=1)
        style = {"rotation": 90, "ha": "center", "va": "top", "color": "0.35", "fontsize": "small"}
        for place in map(levels.index, untrained):
            axis.axvspan(place - 0.5, place + 0.5, color="0.92", zorder=0, linewidth=0)
            where = axis.get_xaxis_transform()
            axis.text(place, 0.98, "not trained", transform=where, bbox={"color": "0.92", "pad": 1}, **style)
        axis.set_xlim(-0.5, len(levels) - 0.5)
        axis.set_xticks(range(len(levels)), [*(f"{level:.0f}" for level in levels[:-1]), "clean"])
        axis.set(xlabel="SNR (dB)", title=_plain(panel[0]) if per_type else "mean of the noise types")
    axes[0, 0].set_ylabel("UA (%)")
    axes[0, 0].set_ylim(max(0, 100 * chance - 8), 100)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = len(labels) if per_type else 2  # below the axes, where it covers no curve
    figure.legend(handles, labels, loc="upper center", ncols=columns, fontsize="small", bbox_to_anchor=(0.5, 0))
    figure.tight_layout()
    return figure


def _percent_confused(table: pd.DataFrame, labels: Sequence[str]) -> np.ndarray:
    from sklearn.metrics import confusion_matrix

    return 100 * confusion_matrix(table["label"], table["prediction"], labels=labels, normalize="true")


def _class_panels(matrices: Mapping[str, np.ndarray], labels: Sequence[str], columns: int, **look: Any) -> Figure:
    """A matrix of classes, (true, predicted), in each panel."""
    rows, side = -(-len(matrices) // columns), 0.9 + 0.5 * len(labels)
    size = (0.6 + side * columns, 0.4 + (side + 0.3) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    look |= {"xticklabels": [*map(_plain, labels)], "yticklabels": [*map(_plain, labels)]}
    for axis, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
        sns.heatmap(matrix, annot=matrix.round() + 0.0, cbar=False, square=True, ax=axis, **look)
        axis.set_title(_plain(name))
    for axis in axes[-1]:
        axis.set_xlabel("predicted")
    for axis in axes[:, 0]:
        axis.set_ylabel("true")
    figure.tight_layout()
    return figure


def confusions(tables: Mapping[str, pd.DataFrame], labels: Sequence[str], columns: int | None = None) -> Figure:
    """Confusion matrices in percent of the true class, one panel per named table of predictions.

    columns: panels side by side, those of the next row below them; all of them in one row unless told.
    """
    matrices = {name: _percent_confused(table, labels) for name, table in tables.items()}
    return _class_panels(matrices, labels, columns or len(tables), fmt=".0f", cmap="Blues", vmin=0, vmax=100)


def confusion_changes(tables: Mapping[str, pd.DataFrame], base: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Each named table's confusion matrix less that of `base`, in points of the true class; blue where there is more.

    Inside the outlined diagonal more is better, outside it worse. base: predictions, as the tables.
    """
    before = _percent_confused(base, labels)
    changes = {name: _percent_confused(table, labels) - before for name, table in tables.items()}
    limit = max(1, *(np.abs(change).max() for change in changes.values()))  # under a point is pale
    figure = _class_panels(changes, labels, len(tables), fmt="+.0f", cmap="RdBu", vmin=-limit, vmax=limit)
    for axis in figure.axes:
        for place in range(len(labels)):
            axis.add_patch(plt.Rectangle((place, place), 1, 1, fill=False, ec="black", linewidth=1.5, clip_on=False))
    return figure


def gain_map(first: pd.DataFrame, second: pd.DataFrame) -> Figure:
    """UA of the first less UA of the second in points, by noise type and SNR; blue where the first is better.

    Tables of predictions as for `snr_curves`, over the same utterances and conditions. The last row is the mean of the
    noise types and the one with clean speech, which has no type; the SNRs outside the trained range stand apart.
    """
    tables = (table.fillna({"snr_db": np.inf}).groupby(["condition", "snr_db"]) for table in (first, second))
    ours, theirs = (pd.Series({cell: 100 * score(part) for cell, part in table}).unstack() for table in tables)
    points = ours - theirs
    clean = points.loc["clean", np.inf]
    points = points.drop("clean")
    points.loc["mean"] = points.mean()
    points.loc["mean", np.inf] = clean
    points = points[sorted(points, reverse=True)]
    untrained = _untrained(first)
    names = ["clean" if np.isinf(snr) else f"{snr:.0f}" + "\nnot trained" * (snr in untrained) for snr in points]
    limit = max(1, np.nanmax(points.abs().to_numpy()))  # under a point is pale
    figure, axis = plt.subplots(figsize=(2.2 + 0.8 * points.shape[1], 1.2 + 0.42 * len(points)))
    look = {"cmap": "RdBu", "vmin": -limit, "vmax": limit, "linewidths": 0.5, "cbar_kws": {"label": "UA, points"}}
    ticks = {"xticklabels": names, "yticklabels": [*map(_plain, points.index)]}
    sns.heatmap(points, annot=True, fmt="+.1f", ax=axis, **ticks, **look)
    axis.grid(False)
    axis.axhline(len(points) - 1, color="black", linewidth=1.5)
    for place in np.flatnonzero(np.diff(points.columns.isin(untrained))) + 1:
        axis.axvline(place, color="black", linewidth=1.5, linestyle="--")
    axis.set(xlabel="SNR (dB)", ylabel="")
    axis.tick_params(axis="y", rotation=0)
    figure.tight_layout()
    return figure


def similarity_map(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """One panel per named table of `representations.similarity`, on one scale from 0 to 1."""
    widths = [max(2.4, 0.6 * len(table.columns)) for table in tables.values()]
    size = (1.5 + sum(widths), 1.3 + 0.42 * max(len(table) for table in tables.values()))
    style = {"figsize": size, "width_ratios": widths, "squeeze": False, "sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(tables), **style)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        sns.heatmap(table, annot=True, fmt=".2f", cmap="Blues", vmin=0, vmax=1, cbar=False, ax=axis)
        axis.set(title=_plain(name), xlabel=table.columns.name, ylabel="")
        axis.tick_params(axis="y", rotation=0)
    axes[0, 0].set_ylabel(next(iter(tables.values())).index.name)
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label="CKA")
    return figure


def embedding_map(points: Mapping[str, np.ndarray], labels: Sequence[str], columns: int) -> Figure:
    """One panel per named map, (utterances, 2), its points by class; labels: the class of each utterance.

    columns: panels side by side. Those of one row share their axes, as one network's conditions do
    (`representations.plane`); another network's map is another row, and has axes of its own.
    """
    rows, classes = -(-len(points) // columns), np.asarray(labels)
    style = {"squeeze": False, "sharex": "row", "sharey": "row", "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, figsize=(1.2 + 3.2 * columns, 0.2 + 3.1 * rows), **style)
    dots = {"markersize": 5.5, "alpha": 0.8, "markeredgecolor": "black", "markeredgewidth": 0.4}
    for axis, (name, places) in zip(axes.flat, points.items(), strict=True):
        for label, marker, colour in zip(sorted(set(labels)), CLASS_MARKERS, sns.color_palette(), strict=False):
            axis.plot(*places[classes == label].T, marker, color=colour, label=_plain(label), **dots)
        axis.set(title=_plain(name), xticks=[], yticks=[])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def ablation_points(table: Table, axis_label: str) -> Figure:
    """A dot with its 95 % interval for each line of a table of differences, in its order; axis_label: of what."""
    cells = [difference_of(line) for line in table.lines]
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.3 * len(cells)))
    _dots(axis, range(len(cells)), cells, fmt="o", color="#0072B2", markersize=5, capsize=3, linewidth=1.3)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(cells)), [_plain(table.key(line)) for line in table.lines])
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=axis_label, ylim=(len(cells) - 0.4, -0.6))
    figure.tight_layout()
    return figure


def _dots(axis: Axes, places: Sequence[int], cells: Sequence[Any], **style: Any) -> None:
    """Cells' values with their intervals; rounding may put an end past the dot."""
    value, low, high = np.array([(cell.value, cell.low, cell.high) for cell in cells]).T
    axis.errorbar(value, places, xerr=np.clip([value - low, high - value], 0, None), **style)


def optimism_steps(table: Table) -> Figure:
    """WA and UA with 95 % intervals, a dot per rung of DKDFMH's tables of optimism; P1 and P2 in two colours."""
    lines, places = table.lines, range(len(table.lines))
    size = (9.5, 1.3 + 0.32 * len(lines))
    figure, axes = plt.subplots(1, 2, figsize=size, sharex=True, sharey=True, layout="constrained")
    for axis, metric in zip(axes, ("WA", "UA"), strict=True):
        for protocol, colour, marker, words in OPTIMISM_STYLES:
            own = [place for place in places if lines[place][metric].selection.protocol == protocol]
            style = {"fmt": marker, "color": colour, "markersize": 6, "capsize": 3, "linewidth": 1.3, "label": words}
            if own:
                _dots(axis, own, [lines[place][metric] for place in own], **style)
        axis.set(xlabel=f"{metric} (%)", ylim=(len(lines) - 0.5, -0.5))
    axes[0].set_yticks(places, [f"{line['evaluation'].text}  {line['rung'].text}" for line in lines])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """`name`.png below `folder`/figures."""
    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    figure.savefig(target / f"{name}.png")
