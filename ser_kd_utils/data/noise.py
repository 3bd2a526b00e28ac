"""Noise recordings, which piece of them an utterance gets, and mixing at an exact signal-to-noise ratio.

Nothing here keeps a random state: what an utterance gets is a function of its name, the condition, the seed and the
epoch, whatever the batch, the order or the number of workers.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ser_kd_utils.data.audio import SAMPLE_RATE, SILENCE, AudioError, read, to_mono
from ser_kd_utils.data.corpora.manifest import SOUND_SUFFIXES, sound_files

# File names of NOISEX-92 (Varga & Steeneken 1993). Babble: 100 people in a canteen; buccaneer1, buccaneer2: cockpit at
# 190 and 450 knots; f16: another; hfchannel: short-wave radio; leopard, m109: tanks; volvo: a car.
NOISEX92 = (
    *("babble", "buccaneer1", "buccaneer2", "destroyerengine", "destroyerops", "f16", "factory1", "factory2"),
    *("hfchannel", "leopard", "m109", "machinegun", "pink", "volvo", "white"),
)
NOISEX92_STUDY = ("babble", "f16", "factory1", "hfchannel", "volvo")  # the five types assumed for MLKD
TYPES_GENERATED = ("babble", "white", "pink", "low-band", "high-band")

FRAME = SAMPLE_RATE // 50  # 20 ms
ACTIVE_RANGE = 10 ** (40 / 10)  # frames within 40 dB of the loudest are speech (STOI, Taal et al. 2011)

RESERVED = ("", "clean")  # no names of noise types
_CLIPPED_FRACTION, _CLIPPED_FROM = 0.01, 0.999
_TALKERS = 12
_RMS = 0.1  # of generated noise


class NoiseBank:
    """Recordings by noise type; each is halved in time, the first half for training and the second for testing.

    types: names in order. source: "folder" or "generated". excluded: DataFrame recording, type, reason.
    fingerprint: SHA-256 of types and samples.
    """

    def __init__(self, recordings: dict[str, list[np.ndarray]], source: str, excluded: Sequence[tuple] = ()):
        if reserved := [kind for kind in recordings if kind in RESERVED]:
            raise ValueError(f"{reserved[0]!r} cannot be a type of noise: rename the folder or the recordings.")
        self._recordings = recordings
        self.types = tuple(recordings)
        self.source = source
        self.excluded = pd.DataFrame(excluded, columns=["recording", "type", "reason"])
        digest = hashlib.sha256()
        for kind, pieces in recordings.items():
            digest.update(f"{kind} {[len(piece) for piece in pieces]}".encode())
            for piece in pieces:
                digest.update(np.rint(piece * 2**15).astype("<i4").tobytes())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def from_folder(cls, folder: str | Path) -> "NoiseBank":
        """All usable recordings in `folder` of NOISEX92_STUDY if all its five types are there, otherwise of the five
        types with most seconds (ties: by name).

        A file's type is the first folder on its way from `folder`, or else its name up to the first "_", in lower case;
        where five or more file names are those of NOISEX-92 (in any case, with or without punctuation), it is that name
        and other files are not used.

        A recording is left out if it is unreadable, empty, holds NaN, is silent (all under -80 dBFS), is clipped (over
        1 % of its samples, before resampling, at 0.999 of full scale or above), or is under 1 s long once stretches
        of 20 ms or more under -80 dBFS are cut away.
        Raises FileNotFoundError (no recordings) or ValueError (nothing usable).
        """
        folder, recordings, excluded = Path(folder), {}, []
        for path, kind in _labels(folder).items():
            try:
                sounding = _load(path)
                recordings.setdefault(kind, []).append(sounding)
            except AudioError as error:
                excluded.append((path.relative_to(folder).as_posix(), kind, error.reason))
        if not recordings:
            reasons = "; ".join(f"{name}: {reason}" for name, _, reason in excluded)
            raise ValueError(f"no usable recording in {folder} ({reasons}).")
        longest = sorted(recordings, key=lambda kind: (-sum(map(len, recordings[kind])), kind))[:5]
        chosen = NOISEX92_STUDY if recordings.keys() >= {*NOISEX92_STUDY} else longest
        return cls({kind: recordings[kind] for kind in sorted(chosen)}, "folder", excluded)

    @classmethod
    def generated(cls, speech: Sequence[np.ndarray], seed: int = 0, seconds: float = 30.0) -> "NoiseBank":
        """One recording of `seconds` of each of TYPES_GENERATED, all at the same RMS.

        babble: 12 talkers at once, each a chain of utterances of `speech` (float32 arrays at 16 kHz, training speakers
        only) cut to its words (within 40 dB of the peak) and brought to the same active level; the halves share no
        utterance. pink: power falls by 3 dB an octave from 20 Hz up. low-band: below 500 Hz. high-band: above 2 kHz.
        Raises ValueError under 24 utterances.
        """
        if len(speech) < 2 * _TALKERS:
            raise ValueError(f"babble needs at least {2 * _TALKERS} utterances, not {len(speech)}.")
        samples = round(seconds * SAMPLE_RATE)
        rng = keyed_rng("generated", seed)
        recordings = {"babble": _babble(speech, samples, rng)}
        hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
        pink = np.maximum(hertz, 20) ** -0.5
        for kind, shape in {"white": 1, "pink": pink, "low-band": hertz < 500, "high-band": hertz > 2000}.items():
            recordings[kind] = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * shape, samples)
        level = {kind: _RMS / np.sqrt(np.mean(np.square(piece))) for kind, piece in recordings.items()}
        return cls({k: [(piece * level[k]).astype(np.float32)] for k, piece in recordings.items()}, "generated")

    def report(self) -> pd.DataFrame:
        """Columns type, recordings, seconds, left out."""
        left_out = self.excluded.type.value_counts()
        rows = [
            (kind, len(pieces), round(sum(map(len, pieces)) / SAMPLE_RATE, 1), left_out.get(kind, 0))
            for kind, pieces in self._recordings.items()
        ]
        return pd.DataFrame(rows, columns=["type", "recordings", "seconds", "left out"])

    def segment(self, kind: str, part: str, samples: int, *key: object) -> np.ndarray:
        """float32 (samples,) from the `part` half ("train", "test") of one recording of `kind`.

        Recording and start are a pure function of kind, part and `key` (as text). A half that is too short is repeated
        from a random start.
        """
        rng = keyed_rng(kind, part, *key)
        pieces = self._recordings[kind]
        piece = pieces[rng.integers(len(pieces))]
        middle = len(piece) // 2
        half = {"train": piece[:middle], "test": piece[middle:]}[part]
        if len(half) < samples:
            return np.resize(np.roll(half, -rng.integers(len(half))), samples)
        start = rng.integers(len(half) - samples + 1)
        return half[start : start + samples].copy()


def keyed_rng(*key: object) -> np.random.Generator:
    """A random generator that depends on nothing but the text of `key`."""
    text = "\x1f".join(map(str, key))
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))


def draw(
    utterance: str, seed: int, epoch: int | str, types: Sequence[str], snr_range: tuple[float, float]
) -> tuple[str, float]:
    """Noise type and SNR in dB, both uniform, as a pure function of utterance, seed and epoch."""
    rng = keyed_rng("draw", utterance, seed, epoch)
    return types[rng.integers(len(types))], float(rng.uniform(*snr_range))


def mix(
    clean: Tensor, noise: Tensor, snr_db: Tensor | float, speech_level: str = "active", lengths: Tensor | None = None
) -> Tensor:
    """clean + g noise, with g such that each item has exactly `snr_db` over its own length.

    clean, noise: (B, T); clean is zero beyond `lengths` (B,), and stays so. snr_db: scalar or (B,); inf gives clean.
    The level of the speech is its `active_power` or its `overall_power`, that of the noise its overall power. Nothing
    is clipped or rescaled; a silent item is returned as it is. The rest of the batch and padding do not change a bit of
    an item's result. Raises ValueError where no gain gives the SNR: silent noise, NaN.
    """
    snr = torch.as_tensor(snr_db, dtype=torch.float64, device="cpu")
    speech_power = {"active": active_power, "overall": overall_power}[speech_level](clean, lengths)
    needed = (speech_power != 0) & (snr != torch.inf)
    gain = torch.where(needed, (speech_power / overall_power(noise, lengths) * 10 ** (-snr / 10)).sqrt(), 0)
    if not gain.isfinite().all():
        raise ValueError("No gain brings the noise to the SNR: it is silent, or speech, noise or SNR are not finite.")
    scaled = noise * gain.to(noise)[:, None]
    if lengths is not None:
        time = torch.arange(noise.shape[1], dtype=torch.int32, device=noise.device)
        scaled.masked_fill_(time >= lengths.to(time)[:, None], 0)
    return scaled.add_(clean)  # not fused with the product, which devices round differently


def overall_power(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean square of each item of (B, T) less its DC offset, over its own length. Returns float64 (B,) on the CPU."""
    energy, samples = _frames(x, lengths)
    return _total(energy) / samples.sum(1).clamp_min(1)


def active_power(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean square over the 20 ms frames whose power is within 40 dB of the loudest frame's.

    Frames do not overlap; a shorter last one counts with the samples it has. The DC offset (the mean over the item's
    own length) is no part of its power. Shapes as in `overall_power`.
    """
    energy, samples = _frames(x, lengths)
    power = energy / samples.clamp_min(1)
    active = power * ACTIVE_RANGE >= power.amax(1, keepdim=True)
    return _total(energy * active) / (samples * active).sum(1).clamp_min(1)


def _frames(x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of squares of each 20 ms frame, less the item's DC offset, and its number of samples.

    float64 and int64 (B, frames), on the CPU, which sums a row in one order whatever stands beside it. The last column
    is what is left of each item after its whole frames; frames beyond an item's length hold 0 samples.
    """
    x, (items, longest) = x.cpu(), x.shape
    lengths = torch.full((items,), longest) if lengths is None else lengths.cpu()
    whole, count = lengths // FRAME, longest // FRAME
    position = whole[:, None] * FRAME + torch.arange(FRAME)
    rest = x.gather(1, position.clamp_max(longest - 1)).masked_fill(position >= lengths[:, None], 0)
    frames = x[:, : count * FRAME].unflatten(1, (count, FRAME))
    samples = torch.cat([(torch.arange(count) < whole[:, None]) * FRAME, (lengths - whole * FRAME)[:, None]], dim=1)
    energy, sums = (
        torch.cat([of(frames), of(rest[:, None])], dim=1).masked_fill(samples == 0, 0).double()
        for of in (lambda each: torch.linalg.vector_norm(each, dim=-1).square(), lambda each: each.sum(-1))
    )
    offset = (_total(sums) / samples.sum(1).clamp_min(1))[:, None]
    centred = energy - 2 * offset * sums + samples * offset.square()  # the sum of (x - offset)^2
    return centred.masked_fill(centred <= energy * 2.0**-20, 0), samples  # so much of a constant is rounding


def _total(values: Tensor) -> Tensor:
    """Sum over frames in integers of 2^-40 of the largest: exact, hence the same in any order and padding."""
    unit = values.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) * 2.0**-40
    return (values / unit[:, None]).round().long().sum(1) * unit


def _labels(folder: Path) -> dict[Path, str]:
    """Noise type of every recording under `folder`, sorted by path."""
    paths = sound_files(folder)
    if not paths:
        raise FileNotFoundError(f"no recordings ({', '.join(SOUND_SUFFIXES)}) in {folder}.")
    plain = {path: re.sub("[^a-z0-9]", "", path.stem.lower()) for path in paths}
    if len(set(plain.values()) & set(NOISEX92)) >= 5:
        return {path: name for path, name in plain.items() if name in NOISEX92}
    parts = {path: path.relative_to(folder).parts for path in paths}
    kinds = {path: first if below else path.stem.split("_")[0] for path, (first, *below) in parts.items()}
    return {path: unicodedata.normalize("NFC", kind).strip().lower() for path, kind in kinds.items()}


def _load(path: Path) -> np.ndarray:
    """A recording without its digital silence. Raises AudioError where it is to be left out."""
    samples, rate = read(path)
    if np.mean(np.abs(samples) >= _CLIPPED_FROM) > _CLIPPED_FRACTION:
        raise AudioError(path, "clipped")
    mono = to_mono(samples, rate)
    quiet = np.abs(mono) < SILENCE
    if quiet.all():
        raise AudioError(path, "silent")
    stretches = np.flatnonzero(np.diff(quiet, prepend=False, append=False)).reshape(-1, 2)
    for start, stop in stretches[stretches[:, 1] - stretches[:, 0] >= FRAME]:
        mono[start:stop] = np.nan
    sounding = mono[~np.isnan(mono)]
    if len(sounding) < SAMPLE_RATE:
        raise AudioError(path, "under 1 s of sound")
    return sounding


def _babble(speech: Sequence[np.ndarray], samples: int, rng: np.random.Generator) -> np.ndarray:
    halves = []
    for part, length in enumerate((samples // 2, samples - samples // 2)):
        order = rng.permutation(np.arange(part, len(speech), 2))
        talkers = [_talker(speech, order[talker::_TALKERS], length, rng) for talker in range(_TALKERS)]
        halves.append(np.sum(talkers, axis=0))
    return np.concatenate(halves)


def _talker(speech: Sequence[np.ndarray], order: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One voice from a random point of its chain on, so that the talkers do not begin together."""
    chain, length = [], 0
    for index in order:
        utterance = speech[index]
        loud = np.flatnonzero(np.abs(utterance) >= np.abs(utterance).max() / 100)
        words = torch.from_numpy(utterance[loud[0] : loud[-1] + 1])[None]
        chain.append((words / active_power(words).sqrt())[0].numpy())
        length += len(chain[-1])
        if length >= samples:
            break
    voice = np.concatenate(chain)
    return np.resize(np.roll(voice, rng.integers(len(voice))), samples)
