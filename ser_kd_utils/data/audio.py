"""Audio files as 16 kHz mono samples, decoded once into a memory-mapped cache.

Levels are left as recorded. The cache holds 16-bit samples: what passes full scale after resampling is clipped there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from math import gcd
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import soundfile
from filelock import FileLock
from scipy.signal import resample_poly

from ser_kd_utils.data.corpora import Corpus
from ser_kd_utils.files import cache_root

SAMPLE_RATE = 16_000
SILENCE = 10 ** (-80 / 20)  # a file whose samples all stay under -80 dBFS is silent

SOUNDFILE_SUFFIXES = (".wav", ".flac", ".ogg")
_SCHEMA = pa.schema({"utterance": pa.string(), "sha256": pa.string(), "samples": pa.list_(pa.int16())})
_LAYOUT = 1  # of the cache; part of its key
_BATCH = 128  # files held in memory while the cache is written


class AudioError(ValueError):
    """A file without usable samples; `reason` is "unreadable", "empty" or "NaN or infinite samples"."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def decode(path: str | Path) -> np.ndarray:
    """One file as float32 (samples,), mono, 16 kHz, at its own level. Raises AudioError."""
    return to_mono(*read(path))


def read(path: str | Path) -> tuple[np.ndarray, int]:
    """One file as float32 (samples, channels) and its sampling rate. Raises AudioError.

    WAV, FLAC and OGG come as stored (a WAV file that was cut short, as far as it goes). FFmpeg reads everything else
    and already gives mono at 16 kHz, downmixed as `ffmpeg -ac 1` does it: the centre of 5.1 sound weighs more than the
    sides, the subwoofer nothing.
    """
    path = Path(path)
    samples, rate = _read_soundfile(path) if path.suffix.lower() in SOUNDFILE_SUFFIXES else _read_ffmpeg(path)
    if not len(samples):
        raise AudioError(path, "empty")
    if not np.isfinite(samples).all():
        raise AudioError(path, "NaN or infinite samples")
    return samples, rate


def to_mono(samples: np.ndarray, rate: int) -> np.ndarray:
    """(samples, channels) at `rate` -> float32 (samples,) at 16 kHz: mean of the channels, polyphase resampling."""
    mono = samples.mean(axis=1, dtype=np.float64)
    if rate != SAMPLE_RATE:
        common = gcd(SAMPLE_RATE, rate)
        mono = resample_poly(mono, SAMPLE_RATE // common, rate // common)
    return mono.astype(np.float32)


def _read_soundfile(path: Path) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(dtype="float32", always_2d=True)
            if len(samples) < file.frames:
                raise AudioError(path, "unreadable")
            return samples, file.samplerate
    except soundfile.SoundFileError as error:
        raise AudioError(path, "unreadable") from error


def _read_ffmpeg(path: Path) -> tuple[np.ndarray, int]:
    import av

    try:
        with av.open(path) as container:
            # 16-bit output makes FFmpeg scale the downmix so that it cannot pass full scale
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            decoded = [*container.decode(container.streams.audio[0]), None]  # None: what is left in the resampler
            blocks = [block.to_ndarray()[0] for frame in decoded for block in resampler.resample(frame)]
    except (av.FFmpegError, IndexError) as error:  # IndexError: no audio stream
        raise AudioError(path, "unreadable") from error
    samples = np.concatenate(blocks) if blocks else np.empty(0, np.int16)
    return samples[:, None] / np.float32(2**15), SAMPLE_RATE


class AudioCache:
    """The decoded utterances of a corpus, made by `cache_audio`.

    `cache[utterance]` is float32 (samples,) in [-1, 1) at 16 kHz. `excluded` (utterance, reason) lists what could not
    be used. `dataset` is the memory-mapped table itself: utterance, sha256 of the samples, 16-bit samples.
    """

    def __init__(self, folder: Path, manifest: pd.DataFrame):
        from datasets import Dataset

        self._made_from = folder, manifest
        self.dataset = Dataset.from_file(str(folder / "audio.arrow"))
        self.excluded = pd.read_csv(folder / "excluded.csv", dtype=str, keep_default_na=False)
        self._samples = {}
        for batch in self.dataset.data.to_batches():
            utterances, _, samples = batch.columns
            views = np.split(samples.values.to_numpy(), samples.offsets.to_numpy()[1:-1])
            self._samples.update(zip(utterances.to_pylist(), views, strict=True))

    def __reduce__(self):  # worker processes map the file again instead of receiving its samples
        return AudioCache, self._made_from

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, utterance: str) -> np.ndarray:
        return self._samples[utterance] * np.float32(2**-15)

    @property
    def utterances(self) -> list[str]:
        return list(self._samples)

    def seconds(self, utterance: str) -> float:
        return len(self._samples[utterance]) / SAMPLE_RATE

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over utterance, label, speaker, split and samples of all that is kept; the same on every machine."""
        contents = self.dataset.select_columns(["utterance", "sha256"]).to_pandas()
        rows = self._made_from[1][["utterance", "label", "speaker", "split"]].merge(contents, on="utterance")
        lines = sorted("\t".join(map(str, row)) for row in rows.itertuples(index=False))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cache_audio(corpus: Corpus, shortest: float = 0.1, longest: float = 60.0) -> AudioCache:
    """Open the decoded audio of `corpus`; decode it first if it is new or damaged, or a file changed (relative
    path, size, time).

    Not usable are files that are unreadable, empty, silent (all under -80 dBFS), hold NaN or infinite samples, are
    shorter than `shortest` or longer than `longest` seconds. Where `corpus.bad_audio` is "error" they raise one
    ValueError and nothing is kept; where it is "exclude" they are listed in `excluded`.
    """
    parent = cache_root() / "audio"
    folder = parent / f"{corpus.name}-{_key(corpus, shortest, longest)}"
    if not (folder.exists() and _is_undamaged(folder)):
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f"{folder.name}.lock"):
            _decode_all(corpus, folder, partial(_stored, shortest=shortest, longest=longest))
    return AudioCache(folder, corpus.manifest)


def _decode_all(corpus: Corpus, folder: Path, load: Callable[[str], np.ndarray | str]) -> None:
    """Into a folder of another name, put in its place once it is whole. Called by one process at a time."""
    if folder.exists() and _is_undamaged(folder):  # another process was first
        return
    made = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
    made.mkdir()
    try:
        excluded = _write(made / "audio.arrow", corpus.manifest, load)
        _check(corpus, excluded)
        excluded.to_csv(made / "excluded.csv", index=False)
        if folder.exists():
            warnings.warn(f"the cached audio {folder.name} was damaged and has been decoded again", stacklevel=3)
            shutil.rmtree(folder)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _intact.add(folder)


_intact: set[Path] = set()
"""Caches that this process has found undamaged, or made: to read hours of sound takes a second."""


def _is_undamaged(folder: Path) -> bool:
    """Whether each utterance's samples are those that were written."""
    if folder not in _intact:
        try:
            with pa.memory_map(str(folder / "audio.arrow")) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    digests, lists = batch.column("sha256").to_pylist(), batch.column("samples")
                    samples = np.split(lists.values.to_numpy(), lists.offsets.to_numpy()[1:-1])
                    if any(_sha256(one) != digest for one, digest in zip(samples, digests, strict=True)):
                        return False
        except (pa.ArrowException, OSError):
            return False
        _intact.add(folder)
    return True


def _key(corpus: Corpus, shortest: float, longest: float) -> str:
    paths = [Path(path) for path in corpus.manifest.path]
    root = os.path.commonpath(path.parent for path in paths)
    digest = hashlib.sha256(repr((_LAYOUT, corpus.bad_audio, shortest, longest)).encode())
    for utterance, path in zip(corpus.manifest.utterance, paths, strict=True):
        state = path.stat() if path.exists() else None
        about = (utterance, path.relative_to(root).as_posix(), state and (state.st_size, state.st_mtime_ns))
        digest.update(repr(about).encode())
    return digest.hexdigest()[:16]


def _write(target: Path, manifest: pd.DataFrame, load: Callable[[str], np.ndarray | str]) -> pd.DataFrame:
    """Decode every file into one Arrow stream, a batch at a time; returns what could not be used."""
    excluded = []
    with pa.ipc.new_stream(target, _SCHEMA) as stream, ThreadPoolExecutor() as pool:
        for start in range(0, len(manifest), _BATCH):
            rows = manifest.iloc[start : start + _BATCH]
            results = dict(zip(rows.utterance, pool.map(load, rows.path), strict=True))
            excluded += [(utterance, result) for utterance, result in results.items() if isinstance(result, str)]
            kept = {utterance: result for utterance, result in results.items() if not isinstance(result, str)}
            if kept:
                stream.write_batch(_batch(kept))
    return pd.DataFrame(excluded, columns=["utterance", "reason"])


def _batch(samples: dict[str, np.ndarray]) -> pa.RecordBatch:
    digests = list(map(_sha256, samples.values()))
    offsets = np.cumsum([0, *map(len, samples.values())], dtype=np.int32)
    lists = pa.ListArray.from_arrays(offsets, np.concatenate(list(samples.values())))
    return pa.record_batch([pa.array(samples), pa.array(digests), lists], schema=_SCHEMA)


def _sha256(samples: np.ndarray) -> str:
    return hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()


def _stored(path: str, shortest: float, longest: float) -> np.ndarray | str:
    """The int16 samples of a file, or the reason why it cannot be used."""
    try:
        samples = decode(path)
    except AudioError as error:
        return error.reason
    seconds = len(samples) / SAMPLE_RATE
    if seconds < shortest:
        return f"shorter than {shortest:g} s"
    if seconds > longest:
        return f"longer than {longest:g} s"
    if np.abs(samples).max() < SILENCE:
        return "silent"
    return np.rint(samples * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)


def _check(corpus: Corpus, excluded: pd.DataFrame) -> None:
    total = len(corpus.manifest)
    if corpus.bad_audio == "error" and len(excluded) or len(excluded) == total:
        named = ", ".join(f"{row.utterance} ({row.reason})" for row in excluded.head(3).itertuples())
        more = f" and {len(excluded) - 3} more" if len(excluded) > 3 else ""
        raise ValueError(
            f"{corpus.name}: {len(excluded)} of {total} audio files cannot be used: {named}{more}; "
            "restore them, or leave them out with Corpus.without()."
        )
