"""What a saved network says of recordings: files, folders, long recordings window by window, a WAV on standard input.

A folder with `model.onnx` is run by onnxruntime alone, without torch and transformers; another one by transformers.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from ser_kd_utils.data.audio import SAMPLE_RATE, SILENCE, AudioError, decode
from ser_kd_utils.data.corpora.manifest import sound_files
from ser_kd_utils.files import PACKAGE

STUDENT = PACKAGE.parent / "results" / "emodb-whisper" / "student"
"""The network that is asked where no other is named."""
GRAPH, ABOUT = "model.onnx", "model.json"
SHORTEST = SAMPLE_RATE // 10
"""In samples; the corpora's utterances are not shorter."""
_UNSAFE = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py")


@dataclass(frozen=True)
class Model:
    """A network and what must be known to use it.

    logits: float32 waves (samples,) at 16 kHz -> (labels,); window: the most samples it is given at a time; least: the
    fewest; fill: how shorter waves reach `least`, with "zeros" or "repeated".
    """

    logits: Callable[[np.ndarray], np.ndarray]
    labels: Sequence[str]
    window: int
    least: int
    fill: str

    def timeline(self, wave: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
        """First and last sample of each window of (samples,), and the labels' probabilities there, (windows, labels).

        The last of several windows ends with the wave: it may overlap the one before.
        """
        end = max(len(wave), self.window) - self.window
        spans = [(start, min(start + self.window, len(wave))) for start in (*range(0, end, self.window), end)]
        logits = np.stack([self.logits(self._filled(wave[start:stop])) for start, stop in spans])
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return spans, odds / odds.sum(1, keepdims=True)

    def _filled(self, wave: np.ndarray) -> np.ndarray:
        if self.fill == "zeros":
            return np.pad(wave, (0, max(self.least - len(wave), 0)))
        return np.resize(wave, max(self.least, len(wave)))


def open_model(folder: Path) -> Model:
    """The network of a folder. Raises ValueError for a folder without one, with a pickle or with code."""
    refuse_code(folder)
    if not (folder / GRAPH).is_file():
        from ser_kd_utils.deploy.export import load

        return load(folder)
    import onnxruntime

    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["model"]
    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    return Model(lambda wave: session.run(None, {"waves": wave[None]})[0][0], **about)


def refuse_code(folder: Path) -> None:
    """Raises ValueError for a folder that is not there, or with which code of somebody else would run."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: pass one with {GRAPH}, or with config.json and safetensors.")
    if unsafe := sorted(path.name for path in folder.iterdir() if path.suffix in _UNSAFE):
        raise ValueError(f"{folder} holds {', '.join(unsafe)}: pickles and code are not opened here, remove them.")
    for path in folder.glob("*config.json"):
        if "auto_map" in json.loads(path.read_text(encoding="utf-8")):
            raise ValueError(f"{path} asks for code of its own (auto_map), which is not run here.")


def predict(
    file: Sequence[str], model: str = "", format: str = "table", noise: str = "", snr: float = 0.0, noise_dir: str = "",
    plot: str = "",
) -> int:  # fmt: skip
    """Print what the network says of each file, folder or `-` (standard input); 1 where a file cannot be read.

    model: its folder, "" for STUDENT; format: "table", "json" or "csv", the last with a line for each window; noise:
    its type, from the recordings in noise_dir or else generated, mixed in at `snr` dB; plot: where the timelines are
    drawn. Raises ValueError for a word or folder that does not serve.
    """
    if format not in WRITERS:
        raise ValueError(f"--format {format}: choose one of {', '.join(WRITERS)}.")
    if not model and not STUDENT.is_dir():
        raise ValueError("No network comes with this installation: pass the folder of one with --model DIR.")
    network = open_model(Path(model).expanduser() if model else STUDENT)
    change = _mixer(noise, snr, noise_dir) if noise else lambda wave, _: wave
    done, failed = [], []
    WRITERS[format](network.labels, _results(network, file, change, done, failed))
    if plot and done:
        draw(network.labels, done, plot)
    return int(bool(failed))


def _results(
    network: Model, names: Iterable[str], change: Callable, done: list[dict], failed: list[str]
) -> Iterator[dict[str, Any]]:
    """What is said of each file in turn, also put into `done`; what cannot be read is named and put into `failed`."""
    paths = ((name, Path(name).expanduser()) for name in names)
    for file in (each for name, path in paths for each in (sound_files(path) if path.is_dir() else [name])):
        try:
            wave = change(_read(file), Path(file).stem)
        except AudioError as error:
            print(f"ser-kd: {file}: {error.reason}", file=sys.stderr)
            failed.append(file)
            continue
        spans, p = network.timeline(wave)
        times = ({"start": start / SAMPLE_RATE, "end": stop / SAMPLE_RATE} for start, stop in spans)
        windows = [time | _said(network.labels, row) for time, row in zip(times, p, strict=True)]
        whole = {"file": str(file), "seconds": len(wave) / SAMPLE_RATE} | _said(network.labels, p.mean(0))
        done.append(whole | {"windows": windows})
        yield done[-1]


def _said(labels: Sequence[str], p: np.ndarray) -> dict[str, Any]:
    return {"label": labels[p.argmax()], "probabilities": dict(zip(labels, p.round(6).tolist(), strict=True))}


def _read(file: str | Path) -> np.ndarray:
    """float32 (samples,) at 16 kHz. Raises AudioError, also for what is too short or silent."""
    if file == "-":
        with NamedTemporaryFile(suffix=".wav") as copy:
            copy.write(sys.stdin.buffer.read())
            copy.flush()
            return _read(copy.name)
    wave = decode(Path(file).expanduser())
    if len(wave) < SHORTEST or np.abs(wave).max() < SILENCE:
        raise AudioError(file, f"silent, or shorter than {SHORTEST / SAMPLE_RATE:g} s")
    return wave


def _mixer(kind: str, snr_db: float, folder: str) -> Callable[[np.ndarray, str], np.ndarray]:
    """What adds noise to a wave as the suite's tests do; the file's name decides which piece of it."""
    from ser_kd_utils.data.audio import cache_audio
    from ser_kd_utils.data.corpora import load_corpus
    from ser_kd_utils.data.noise import NoiseBank
    from ser_kd_utils.training.evaluation import noisy_views

    if folder:
        bank = NoiseBank.from_folder(folder, [kind])
    else:  # the demo's synthetic voices babble
        demo = cache_audio(load_corpus("demo"))
        bank = NoiseBank.generated([demo[utterance] for utterance in demo.utterances])
    return lambda wave, name: noisy_views(wave, name, [(kind, snr_db)], bank, "test", 0, "active")[0].numpy()


def _write_table(labels: Sequence[str], results: Iterable[dict]) -> None:
    line = (
        f"{{:>{max(map(len, labels))}}}  {'  '.join(f'{{:>{max(5, len(label))}}}' for label in labels)}  {{:>7}}  {{}}"
    )
    print(line.format("label", *labels, "seconds", "file"))
    for result in results:
        numbers = (f"{p:.3f}" for p in result["probabilities"].values())
        print(line.format(result["label"], *numbers, f"{result['seconds']:.1f}", result["file"]), flush=True)


def _write_csv(labels: Sequence[str], results: Iterable[dict]) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "start", "end", "label", *labels])
    for result in results:
        for each in result["windows"]:
            table.writerow([result["file"], each["start"], each["end"], each["label"], *each["probabilities"].values()])


def _write_json(_: Sequence[str], results: Iterable[dict]) -> None:
    print(json.dumps([*results], indent=1, ensure_ascii=False))


WRITERS = {"table": _write_table, "json": _write_json, "csv": _write_csv}


def draw(labels: Sequence[str], results: Sequence[dict], path: str) -> None:
    """The probabilities over time as stacked areas, one recording below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 1.5 * len(results)), layout="constrained")
    for axes, result in zip(figure.subplots(len(results), squeeze=False)[:, 0], results, strict=True):
        rows = [[each["start"], *each["probabilities"].values()] for each in result["windows"]]
        starts, *p = np.array([*rows, [result["seconds"], *rows[-1][1:]]]).T
        axes.stackplot(starts, p, labels=labels, step="post")
        axes.set(title=Path(result["file"]).name, xlim=(0, starts[-1]), ylim=(0, 1), ylabel="probability")
    axes.set_xlabel("seconds")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path)
