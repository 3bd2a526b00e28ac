"""Audio files as 16 kHz mono samples, decoded once into a memory-mapped cache.

Levels are left as recorded. The cache holds 16-bit samples; samples beyond full scale are clipped, with a warning.
"""

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import soundfile

from ser_kd_utils.data.corpora import Corpus, Split
from ser_kd_utils.data.corpora.manifest import PARTS, some
from ser_kd_utils.files import cache_root, make_once

SAMPLE_RATE = 16_000
SILENCE = 10 ** (-80 / 20)  # a file whose samples all stay under -80 dBFS is silent
MIN_SECONDS, MAX_SECONDS = 0.1, 60.0  # of an utterance

MAX_PEAK = 2.0  # of samples as stored: lossy formats pass full scale a little, samples of another scale by far
NO_SOUND = {
    b"version https://git-lfs": ": a Git LFS pointer, which `git lfs pull` replaces by the sound",
    b"<": ": a web page, download the file again",
}
_LAYOUT = 3  # of the cache; part of its key
_BATCH = 128  # files held in memory while the cache is written


class AudioError(ValueError):
    """A file without usable samples; `reason` says why, as "unreadable", "empty" or "NaN or infinite samples"."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def decode(path: str | Path) -> np.ndarray:
    """One file as float32 (samples,), mono, 16 kHz, at its own level. Raises AudioError."""
    return to_mono(*read(path))


def read(path: str | Path) -> tuple[np.ndarray, int]:
    """One file as float32 (samples, channels) and its sampling rate. Its content decides the format. Raises AudioError.

    Formats that libsndfile reads (WAV, FLAC, OGG, AIFF) are returned as stored (a truncated WAV file up to its end).
    FFmpeg reads everything else, also MP3, GSM and WAV files whose header gives no length, and already gives mono at
    16 kHz, downmixed as `ffmpeg -ac 1` does it: the centre of 5.1 sound weighs more than the sides, the subwoofer
    nothing.
    """
    path = Path(path)
    samples, rate = _read(path)
    if not np.isfinite(samples).all():
        raise AudioError(path, "NaN or infinite samples")
    if (peak := np.abs(samples).max()) > MAX_PEAK:
        raise AudioError(path, f"samples up to {peak:g}, where full scale is 1: divide them by theirs, as 32768")
    return samples, rate


def to_mono(samples: np.ndarray, rate: int) -> np.ndarray:
    """(samples, channels) at `rate` -> float32 (samples,) at 16 kHz: mean of the channels, polyphase resampling."""
    mono = samples.mean(axis=1, dtype=np.float64)
    if rate != SAMPLE_RATE:
        from scipy.signal import resample_poly  # takes a second to import

        mono = resample_poly(mono, SAMPLE_RATE, rate)
    return mono.astype(np.float32)


def _read(path: Path) -> tuple[np.ndarray, int]:
    try:
        file = soundfile.SoundFile(path)
    except soundfile.SoundFileError:
        return _read_ffmpeg(path, "unreadable")
    with file:
        if not file.frames or not file.seekable() or file.format == "MP3":
            return _read_ffmpeg(path, "unreadable" if file.frames else "empty")
        with suppress(soundfile.SoundFileError):
            samples = file.read(dtype="float32", always_2d=True)
            if len(samples) == file.frames:
                return samples, file.samplerate
    raise AudioError(path, "unreadable")


def _read_ffmpeg(path: Path, otherwise: str) -> tuple[np.ndarray, int]:
    import av

    try:
        with av.open(path) as container:
            # 16-bit output makes FFmpeg scale the downmix so that it cannot pass full scale
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            decoded = [*container.decode(container.streams.audio[0]), None]  # None: what is left in the resampler
            blocks = [block.to_ndarray()[0] for frame in decoded for block in resampler.resample(frame)]
            samples = np.concatenate(blocks)
    except (av.FFmpegError, IndexError, ValueError) as error:  # IndexError: no audio stream; ValueError: nothing in it
        start = path.read_bytes()[:64].lstrip().lower() if path.is_file() else b""
        known = [reason for mark, reason in NO_SOUND.items() if start.startswith(mark)]
        raise AudioError(path, otherwise + "".join(known)) from error
    return samples[:, None] / np.float32(2**15), SAMPLE_RATE


class AudioCache:
    """The decoded utterances of a corpus, made by `cache_audio`.

    `cache[utterance]` is float32 (samples,) in [-1, 1) at 16 kHz. `excluded` (utterance, reason) lists what could not
    be used. `sha256` gives the digest of each utterance's samples. `dataset` is the memory-mapped table itself:
    utterance, samples (16-bit, little-endian, as bytes), sha256, reason why it cannot be used, clipped. longest:
    samples after which an utterance is cut. Raises ValueError where stored samples have changed.
    """

    def __init__(self, folder: Path, manifest: pd.DataFrame):
        from datasets import Dataset

        self.manifest, self.longest = manifest, None
        self.dataset = Dataset.from_file(str(folder / "audio.arrow"))
        table = self.dataset.remove_columns("samples").to_pandas()
        kept = table[table.reason == ""]
        self.excluded = table.loc[table.reason != "", ["utterance", "reason"]].reset_index(drop=True)
        self.utterances = kept.utterance.to_list()
        self.sha256 = dict(zip(kept.utterance, kept.sha256, strict=True))
        self._places = dict(zip(kept.utterance, kept.index, strict=True))
        if damaged := [u for u in self.utterances if _sha256(self._stored(u)) != self.sha256[u]]:
            raise ValueError(f"the cached audio in {folder} is damaged ({some(damaged)}): delete that folder")

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, utterance: str) -> np.ndarray:
        return np.frombuffer(self._stored(utterance), "<i2")[: self.longest] * np.float32(2**-15)

    def _stored(self, utterance: str) -> pa.Buffer:
        return self.dataset.data.column("samples")[self._places[utterance]].as_buffer()

    def seconds(self, utterance: str) -> float:
        return len(self[utterance]) / SAMPLE_RATE

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over utterance, label, speaker, split and samples of all that is kept; the same on every machine."""
        rows = self.manifest[["utterance", "label", "speaker", "split"]]
        kept = rows[rows.utterance.isin(self.sha256)].assign(sha256=rows.utterance.map(self.sha256))
        lines = sorted("\t".join(map(str, row)) for row in kept.itertuples(index=False))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cache_audio(corpus: Corpus) -> AudioCache:
    """Open the decoded audio of `corpus`; decode it first if it is new or a file changed (relative path, size, time).

    Files cannot be used if `read` refuses them, or if they are silent (all under -80 dBFS), shorter than MIN_SECONDS
    or longer than MAX_SECONDS. Where `corpus.bad_audio` is "error" they raise one ValueError and nothing is kept;
    where it is "exclude" they are listed in `excluded`. Warns of files that are clipped when they are decoded.
    """
    folder = cache_root() / "audio" / f"{corpus.name}-{_key(corpus)}"
    return AudioCache(make_once(folder, partial(_decode_all, corpus)), corpus.manifest)


def _decode_all(corpus: Corpus, folder: Path) -> None:
    from datasets import Dataset, Features, Value, disable_progress_bars

    types = {"utterance": "string", "samples": "binary", "sha256": "string", "reason": "string", "clipped": "bool"}
    features = Features({name: Value(each) for name, each in types.items()})
    disable_progress_bars()  # they would stand in stored notebooks
    with ThreadPoolExecutor() as pool:

        def decoded(batch: dict[str, list[str]]) -> dict[str, list]:
            return pd.DataFrame(pool.map(_stored, batch["path"]), columns=[*types][1:]).to_dict("list")

        rows = Dataset.from_pandas(corpus.manifest[["utterance", "path"]], preserve_index=False).map(
            decoded, batched=True, batch_size=_BATCH, remove_columns="path", features=features, new_fingerprint="-",
            cache_file_name=str(folder / "audio.arrow"),
        )  # fmt: skip
    _check(corpus, [(name, reason) for name, reason in zip(rows["utterance"], rows["reason"], strict=True) if reason])
    if len(clipped := corpus.manifest.path[rows["clipped"][:]]):
        which = f"{len(clipped)} of {len(rows)} files pass full scale and are clipped there, as {min(clipped)}"
        warnings.warn(f"{corpus.name}: {which}: write them at a lower level to keep them whole", stacklevel=4)


def refuse_shared_samples(split: Split, audio: AudioCache) -> None:
    """Raise ValueError if two parts of a split share samples under any name; warn if the split is a published one."""
    first = {}
    for part in PARTS:
        for utterance in getattr(split, part):
            # what is excluded has no samples
            other, where = first.setdefault(audio.sha256.get(utterance, utterance), (utterance, part))
            if where != part:
                pair = f"{other} in {where} and {utterance} in {part} are the same samples"
                message = f"{split.corpus}, {split.protocol}, fold {split.fold}: {pair}"
                if split.corpus == "manifest":
                    raise ValueError(f"{message}: leave one of them out")
                warnings.warn(message, stacklevel=2)  # the corpus is tested as it was published
                return


def _key(corpus: Corpus) -> str:
    paths = [Path(path) for path in corpus.manifest.path]
    root = os.path.commonpath(path.parent for path in paths)
    digest = hashlib.sha256(repr((_LAYOUT, corpus.bad_audio, MIN_SECONDS, MAX_SECONDS)).encode())
    for utterance, path in zip(corpus.manifest.utterance, paths, strict=True):
        state = path.stat() if path.exists() else None
        about = (utterance, path.relative_to(root).as_posix(), state and (state.st_size, state.st_mtime_ns))
        digest.update(repr(about).encode())
    return digest.hexdigest()[:16]


def _stored(path: str) -> tuple[bytes, str, str, bool]:
    """The int16 samples of a file and their SHA-256, the reason why it cannot be used, whether it is clipped."""
    try:
        samples = decode(path)
        seconds, peak = len(samples) / SAMPLE_RATE, np.abs(samples).max()
        if seconds < MIN_SECONDS:
            raise AudioError(path, f"shorter than {MIN_SECONDS:g} s")
        if seconds > MAX_SECONDS:
            raise AudioError(path, f"longer than {MAX_SECONDS:g} s")
        if peak < SILENCE:
            raise AudioError(path, "silent")
    except AudioError as error:
        return b"", "", error.reason, False
    stored = np.rint(samples * 2**15).clip(-(2**15), 2**15 - 1).astype("<i2")
    return stored.tobytes(), _sha256(stored), "", bool(peak > 1)


def _sha256(samples: np.ndarray | pa.Buffer) -> str:
    return hashlib.sha256(samples).hexdigest()


def _check(corpus: Corpus, excluded: list[tuple[str, str]]) -> None:
    total = len(corpus.manifest)
    if corpus.bad_audio == "error" and excluded or len(excluded) == total:
        named = some(f"{utterance} ({reason})" for utterance, reason in excluded)
        remedy = "restore them" + " or take their rows out of the table" * (corpus.name == "manifest")
        raise ValueError(f"{corpus.name}: {len(excluded)} of {total} audio files cannot be used: {named}; {remedy}")
