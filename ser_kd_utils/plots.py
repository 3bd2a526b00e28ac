"""Figures and audio players for the notebooks: colour-blind safe, readable in print."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ser_kd_utils.audio import SAMPLE_RATE
from ser_kd_utils.metrics import interval
from ser_kd_utils.recipes import ROWS

# Okabe & Ito (2008), and a marker each, so that the lines differ without colour too
ROW_STYLES = {
    "a": ("#000000", "o", "-"),
    "b": ("#0072B2", "s", "--"),
    "c": ("#E69F00", "^", "-"),
    "d": ("#56B4E9", "v", "-"),
    "e": ("#D55E00", "D", "-"),
}


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
    return HTML(
        f'<div style="display:flex;align-items:center;gap:1em"><span style="width:16em">{label}</span>{audio}</div>'
    )


def log_mel(wave: np.ndarray, bands: int = 40) -> np.ndarray:
    """Log-mel spectrogram in dB, (bands, frames): 25 ms Hann windows every 10 ms, 0 to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(257, bands, 0, SAMPLE_RATE / 2, SAMPLE_RATE)
    window = window_function(400, "hann")
    return spectrogram(wave, window, 400, 160, fft_length=512, power=2.0, mel_filters=filters, log_mel="dB")


def views(waves: Mapping[str, np.ndarray]) -> Figure:
    """Waveforms above log-mel spectrograms, one column per named wave (samples,), with common scales."""
    figure, axes = plt.subplots(2, len(waves), figsize=(3.4 * len(waves), 4), sharex=True, sharey="row", squeeze=False)
    spectra = {name: log_mel(wave) for name, wave in waves.items()}
    top = max(spectrum.max() for spectrum in spectra.values())
    for column, (name, wave) in enumerate(waves.items()):
        seconds = len(wave) / SAMPLE_RATE
        axes[0, column].plot(np.arange(len(wave)) / SAMPLE_RATE, wave, linewidth=0.4, color="#0072B2")
        axes[0, column].set_title(name)
        image = axes[1, column].imshow(
            spectra[name],
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, len(spectra[name])),
            vmin=top - 60,
            vmax=top,
            cmap="magma",
            interpolation="nearest",
        )
        axes[1, column].grid(False)
        axes[1, column].set_xlabel("time (s)")
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("mel band")
    figure.tight_layout()
    figure.colorbar(image, ax=axes, label="dB", shrink=0.45, anchor=(0, 0.05), pad=0.02)
    return figure


def noise_spectra(segments: Mapping[str, np.ndarray]) -> Figure:
    """Mean power over frequency of each noise type, (samples,) each, relative to its own maximum."""
    from scipy.signal import welch

    figure, axis = plt.subplots(figsize=(7, 3.2))
    for colour, (name, wave) in zip(sns.color_palette("colorblind"), segments.items(), strict=False):
        hertz, power = welch(wave, SAMPLE_RATE, nperseg=1024)
        axis.plot(hertz[1:] / 1000, 10 * np.log10(power[1:] / power.max() + 1e-12), label=name, color=colour)
    axis.set(xlabel="frequency (kHz)", ylabel="power (dB re maximum)", ylim=(-70, 3), xlim=(0, 8))
    axis.legend(ncols=2, fontsize="small")
    figure.tight_layout()
    return figure


def learning_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss and dev UA by epoch of each named run; columns `loss` and `dev_UA`, index epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for row, history in histories.items():
        colour, _, line = ROW_STYLES[row]
        style = {"color": colour, "linestyle": line, "label": f"({row}) {ROWS[row].title}"}
        left.plot(history.index, history["loss"], **style)
        right.plot(history.index, 100 * history["dev_UA"], **style)
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="dev UA (%)")
    right.legend(fontsize="small")
    figure.tight_layout()
    return figure


def _curve(axis: Axes, table: pd.DataFrame, row: str, positions: Mapping[float, int]) -> None:
    """UA over SNR with its interval, clean speech at the right end."""
    points = []
    for snr_db, part in table.groupby(table["snr_db"].fillna(np.inf)):
        value, low, high = interval(part)
        points.append((positions[snr_db], 100 * value, 100 * (value - low), 100 * (high - value)))
    x, y, below, above = np.array(sorted(points)).T
    shift = 0.06 * (list(ROWS).index(row) - 2)  # so that the bars of different rows do not hide each other
    colour, marker, line = ROW_STYLES[row]
    axis.errorbar(
        x + shift,
        y,
        yerr=np.clip([below, above], 0, None),
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=5,
        linewidth=1.5,
        elinewidth=0.9,
        capsize=2,
        label=f"({row}) {ROWS[row].title}",
    )


def snr_curves(predictions: Mapping[str, pd.DataFrame], chance: float, per_type: bool = False) -> Figure:
    """UA against SNR with 95 % bootstrap intervals, one line per row letter; clean speech stands at the right end.

    predictions: tables with utterance, condition, snr_db, label, prediction; chance: UA of guessing, a dotted line.
    per_type: one panel per noise type instead of their mean.
    """
    anyone = next(iter(predictions.values()))
    kinds = sorted(set(anyone["condition"]) - {"clean"})
    panels = [[kind] for kind in kinds] if per_type else [kinds]
    levels = [*sorted(anyone["snr_db"].dropna().unique()), np.inf]
    positions = {level: place for place, level in enumerate(levels)}
    width = 3.0 * len(panels) if per_type else 6.4
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.2 if per_type else 4), sharey=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for row, table in predictions.items():
            _curve(axis, table[table["condition"].isin(["clean", *panel])], row, positions)
        axis.axhline(100 * chance, color="grey", linestyle=":", linewidth=1)
        axis.set_xticks(range(len(levels)), [*(f"{level:.0f}" for level in levels[:-1]), "clean"])
        axis.set(xlabel="SNR (dB)", title=panel[0] if per_type else "mean of the noise types")
    axes[0, 0].set_ylabel("UA (%)")
    axes[0, 0].set_ylim(max(0, 100 * chance - 8), 100)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if per_type:
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize="small", bbox_to_anchor=(0.5, 0))
    else:
        axes[0, 0].legend(handles, labels, fontsize="small", loc="lower right")
    figure.tight_layout()
    return figure


def confusions(tables: Mapping[str, pd.DataFrame], labels: Sequence[str]) -> Figure:
    """Confusion matrices in percent of the true class, one panel per named table of predictions."""
    from sklearn.metrics import confusion_matrix

    figure, axes = plt.subplots(1, len(tables), figsize=(3.6 * len(tables), 3.3), squeeze=False, sharey=True)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        matrix = 100 * confusion_matrix(table["label"], table["prediction"], labels=labels, normalize="true")
        sns.heatmap(
            matrix, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar=False, square=True, ax=axis,
            xticklabels=labels, yticklabels=labels,
        )  # fmt: skip
        axis.set(title=name, xlabel="predicted")
    axes[0, 0].set_ylabel("true")
    figure.tight_layout()
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """`name`.png below `folder`/figures."""
    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    figure.savefig(target / f"{name}.png")
