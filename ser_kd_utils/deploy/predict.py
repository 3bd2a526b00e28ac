"""The answers of a saved network for recordings: files, folders, long recordings by windows, a WAV on standard input.

A folder with `model.onnx` is run by onnxruntime alone, without torch and transformers; another one by transformers.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import numpy as np
import pandas as pd

from ser_kd_utils.data.audio import SAMPLE_RATE, SILENCE, AudioError, cache_audio, decode
from ser_kd_utils.data.corpora import load_corpus
from ser_kd_utils.data.corpora.manifest import sound_files
from ser_kd_utils.records import EVIDENCE

STUDENT = EVIDENCE / "emodb-whisper" / "student"  # the network that is asked where no other is named
GRAPH = "model.onnx"
SHORTEST = SAMPLE_RATE // 10  # in samples; the corpora's utterances are not shorter
# what is printed of all windows, and of the files, whose probabilities are the mean over their windows
FORMATS = {
    "table": lambda windows, files: files[[*files.columns[1:], "file"]].round(3).to_string(index=False),
    "json": lambda windows, files: json.dumps(files.to_dict("records"), indent=1, ensure_ascii=False),
    "csv": lambda windows, files: windows.round(6).to_csv(index=False).rstrip("\n"),
}
_UNSAFE = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py")


class Model(NamedTuple):
    """A network: its logits (labels,) of float32 waves (samples,) at 16 kHz, not longer than `window` samples."""

    logits: Callable[[np.ndarray], np.ndarray]
    labels: list[str]
    window: int

    def timeline(self, wave: np.ndarray) -> pd.DataFrame:
        """A line for each window of (samples,): start and end in seconds, the likeliest label, the probabilities.

        The last of several windows ends with the wave: it may overlap the one before.
        """
        last = max(len(wave) - self.window, 0)
        starts = np.array([*range(0, last, self.window), last])
        logits = np.stack([self.logits(wave[start : start + self.window]) for start in starts])
        odds = np.exp(logits - logits.max(1, keepdims=True))  # scipy's softmax, whose import takes a while
        found = pd.DataFrame(odds / odds.sum(1, keepdims=True), columns=self.labels)
        spans = {"start": starts, "end": np.minimum(starts + self.window, len(wave))}
        return pd.DataFrame(spans).div(SAMPLE_RATE).assign(label=found.idxmax(axis=1)).join(found)


def open_model(folder: Path) -> Model:
    """The network of a folder. Raises ValueError for a folder without one, with a pickle or with code."""
    refuse_unsafe(folder)
    if not (folder / GRAPH).is_file():
        from ser_kd_utils.deploy.export import load

        return load(folder)
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["ser-kd"])
    return Model(lambda wave: session.run(None, {"waves": wave[None]})[0][0], **about)


def refuse_unsafe(folder: Path) -> None:
    """Raises ValueError for a folder without a network, or with which code of somebody else would run."""
    if not any((*folder.glob(GRAPH), *folder.glob("*.safetensors"))):
        raise ValueError(f"{folder} holds no network ({GRAPH}, or safetensors): pass the folder of one.")
    for path in sorted(folder.glob("*")):
        if path.suffix in _UNSAFE or (path.suffix == ".json" and "auto_map" in path.read_text(encoding="utf-8")):
            raise ValueError(f"{path} is a pickle or code, or asks for some (auto_map), which is not run here.")


def predict(
    file: Sequence[str], model: str = "", format: str = "table", noise: str = "", snr: float = 0.0, noise_dir: str = "",
    plot: str = "",
) -> int:  # fmt: skip
    """Print the network's answer for each file, folder or `-` (standard input); return 1 if a file cannot be read.

    model: its folder, "" for STUDENT; format: "table" or "json", with a line for each file and the mean over its
    windows, or "csv", with a line for each window; noise: its type, from the recordings in noise_dir or else generated,
    mixed in at `snr` dB; plot: where the timelines are drawn. Raises ValueError for a word or folder that does not
    serve.
    """
    if format not in FORMATS:
        raise ValueError(f"--format {format}: choose one of {', '.join(FORMATS)}.")
    network = open_model(Path(model) if model else STUDENT)
    change = _mixer(noise, snr, noise_dir) if noise else lambda wave, _: wave
    files = [sound_files(Path(name)) if Path(name).is_dir() else [name] for name in file]
    found, files = {}, dict.fromkeys(str(each) for some in files for each in some)
    for name in files:
        try:
            found[name] = network.timeline(change(_read(name), Path(name).stem))
        except AudioError as error:
            print(f"ser-kd: {name}: {error.reason}", file=sys.stderr)
    if found:
        windows = pd.concat(found, names=["file"]).droplevel(1).reset_index()
        how = {"seconds": ("end", "max"), **{label: (label, "mean") for label in network.labels}}
        means = windows.groupby("file", sort=False).agg(**how)
        means.insert(0, "label", means[network.labels].idxmax(axis=1))
        print(FORMATS[format](windows, means.reset_index()))
    if found and plot:
        draw(found, network.labels, plot)
    return int(len(found) < len(files))


def _read(name: str) -> np.ndarray:
    """float32 (samples,) at 16 kHz. Raises AudioError, also for what is too short or silent."""
    if name == "-":
        with NamedTemporaryFile(buffering=0) as copy:
            copy.write(sys.stdin.buffer.read())
            return _read(copy.name)
    wave = decode(name)
    if len(wave) < SHORTEST or np.abs(wave).max() < SILENCE:
        raise AudioError(name, f"silent, or shorter than {SHORTEST / SAMPLE_RATE:g} s")
    return wave


def _mixer(kind: str, snr_db: float, folder: str) -> Callable[[np.ndarray, str], np.ndarray]:
    """A function that adds noise to a wave as the suite's tests do; the file's name decides which piece of noise."""
    from ser_kd_utils.data.noise import NoiseBank
    from ser_kd_utils.training.evaluation import noisy_views

    demo = None if folder else cache_audio(load_corpus("demo"))  # its synthetic voices babble
    bank = NoiseBank.generated([demo[each] for each in demo.utterances]) if demo else NoiseBank.from_folder(folder)
    if kind not in bank.types:
        raise ValueError(f"--noise {kind}: there are: {', '.join(bank.types)}.")
    return lambda wave, name: noisy_views(wave, name, [(kind, snr_db)], bank, "test", 0, "active")[0].numpy()


def draw(found: Mapping[str, pd.DataFrame], labels: list[str], path: str) -> None:
    """The probabilities over time as stacked areas, one recording below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 1.5 * len(found)), layout="constrained")
    for axes, (name, windows) in zip(figure.subplots(len(found), squeeze=False)[:, 0], found.items(), strict=True):
        steps = pd.concat([windows, windows.tail(1).assign(start=windows["end"])])
        axes.stackplot(steps["start"], steps[labels].T, labels=labels, step="post")
        axes.set(title=Path(name).name, xlabel="seconds", ylabel="probability", xmargin=0, ymargin=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path)
