"""The demo corpus: short English sentences spoken by Praat's synthesizer, in IEMOCAP's folder layout.

Praat (through praat-parselmouth) speaks a sentence, and overlap-add resynthesis (PSOLA, Moulines & Charpentier 1990)
gives it the prosody of an emotion. The directions of the effects follow the literature (Murray & Arnott 1993; Juslin &
Laukka 2003; Scherer 2003): anger is high, wide, fast, loud and bright and falls at the end; happiness is high and wide,
a little fast and bright, and rises; sadness is low, narrow, slow, soft and dull. The sizes are chosen here, and every
utterance draws its own, so that the emotions overlap. All emotions share the same sentences.

The corpus is synthetic: it shows that the suite works, and says nothing about people.
"""

import hashlib
import subprocess
import sys
import tomllib
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

CHECKSUM = "8f827c5fbd152fd6b0f85483a7a4a6dd6faa99fce09c7654fb080404d5a06834"
RATE = 16_000
# What is said by whom, and what an emotion does to a voice.
_TOLD = tomllib.loads(Path(__file__).with_name("demo.toml").read_text(encoding="utf-8"))
COUNTS, SENTENCES, WORDS = _TOLD["counts"], _TOLD["sentences"], _TOLD["words"]
PROSODY, SPREAD, VOICES = _TOLD["prosody"], _TOLD["spread"], _TOLD["voices"]


def ensure_demo(root: Path) -> Path:
    """The demo corpus's folder inside `root`, made on first use (20 s on two idle cores).

    Of two processes that call this at once, one makes it and the other waits.
    Warns if the corpus is not the one this version was tested with (another Praat, another platform, a damaged file).
    """
    from ser_kd_utils.files import make_once  # here: a session's process runs this file alone

    folder = make_once(Path(root) / f"demo-{CHECKSUM[:12]}", _make)
    if (found := checksum(folder)) != CHECKSUM:
        differs = f"has checksum {found}, not {CHECKSUM}: scores on it may differ slightly from those in results/"
        warnings.warn(f"the demo corpus in {folder} {differs}", stacklevel=2)
    return folder


def checksum(folder: Path) -> str:
    """sha256 over the names and contents of all files of the sessions, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.glob("Session*/**/*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _make(folder: Path) -> None:
    # A fresh process for each session: a voice carries state from one utterance to the next.
    commands = [[sys.executable, "-P", __file__, str(folder), number] for number in VOICES]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(subprocess.run, check=True), commands))  # a failure is raised here


def make_session(folder: Path, number: int) -> None:
    """Speak and write one session (its female and its male speaker in turns) under `folder`."""
    import soundfile
    from parselmouth.praat import call, run

    run(f"random_initializeWithSeedUnsafelyButPredictably ({number})")  # PSOLA draws where it takes voiceless stretches
    rng = np.random.default_rng([2003, number])
    room = {"gain": rng.normal(0, 2.0), "tilt": rng.normal(0, 0.2), "floor": rng.uniform(-66, -58)}
    voices = VOICES[str(number)]
    synthesizers = {sex: call("Create SpeechSynthesizer", v["language"], v["name"]) for sex, v in voices.items()}
    labels = {sex: rng.permutation([k for k, n in COUNTS.items() for _ in range(n)]) for sex in "FM"}
    base = folder / f"Session{number}"
    for index, scene in enumerate(("impro01", "impro02", "script01_1", "script02_1")):
        dialog = f"Ses{number:02d}{'FM'[index % 2]}_{scene}"
        wavs = base / "sentences/wav" / dialog
        wavs.mkdir(parents=True)
        clock, blocks = 5.0, []
        for turn, (female, male) in enumerate(zip(*(np.array_split(labels[s], 4)[index] for s in "FM"), strict=True)):
            for sex, label in (("F", female), ("M", male)):
                name = f"{dialog}_{sex}{turn:03d}"
                samples = speak(synthesizers[sex], voices[sex], str(label), room, rng)
                soundfile.write(wavs / f"{name}.wav", samples, RATE, subtype="PCM_16")
                end = clock + len(samples) / RATE
                blocks.append(evaluation(name, str(label), clock, end, rng))
                clock = end + rng.uniform(0.2, 1.0)
        text = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n" + "\n".join(blocks)
        notes = base / "dialog/EmoEvaluation"
        notes.mkdir(parents=True, exist_ok=True)
        (notes / f"{dialog}.txt").write_text(text, newline="\n")


def speak(synthesizer, voice: dict, label: str, room: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """One utterance, float64 (samples,) at 16 kHz, 0.9 to 1.8 s."""
    from parselmouth.praat import call

    drawn = {name: rng.normal(PROSODY[label][name], spread) for name, spread in SPREAD.items()}
    (sound,) = call(synthesizer, "To Sound", SENTENCES[rng.integers(len(SENTENCES))], "no")
    loud = np.nonzero(np.abs(sound.values[0]) > 0.01 * np.abs(sound.values).max())[0] / sound.sampling_frequency
    sound = call(sound, "Extract part", loud[0], loud[-1], "rectangular", 1, "no")
    # Played faster by the formant factor, then stretched back by PSOLA, which leaves the formants where they are.
    call(sound, "Override sampling frequency", sound.sampling_frequency * voice["formants"])
    length = call(sound, "Get total duration")
    pads = rng.uniform(0.04, 0.12, 2)
    target = length * voice["formants"] / (1.25 * voice["tempo"] * np.exp(drawn["tempo"]))
    target = np.clip(target, 0.9 - pads.sum() + 0.01, 1.79 - pads.sum())
    manipulation = call(sound, "To Manipulation", 0.01, 60, 400)
    tier = call(manipulation, "Extract pitch tier")
    own = call(tier, "Get mean (points)", 0, 0)
    excursion = f"min (5, max (-5, 12 * log2 (self / {own}))) * {1.5 * np.exp(drawn['width'])}"
    final = f"{drawn['final']} * max (0, (x / {length} - 0.6) / 0.4)"
    call(tier, "Formula", f"min (550, max (60, {voice['f0']} * 2 ^ (({excursion} + {drawn['shift']} + {final}) / 12)))")
    stretch = call("Create DurationTier", "tempo", 0, length)
    call(stretch, "Add point", 0, target / length)
    call([tier, manipulation], "Replace pitch tier")
    call([stretch, manipulation], "Replace duration tier")
    spoken = call(call(manipulation, "Get resynthesis (overlap-add)"), "Resample", RATE, 50).values[0]
    return record(spoken, drawn["tilt"] + room["tilt"], drawn["level"] + room["gain"], room["floor"], pads, rng)


def record(spoken: np.ndarray, tilt: float, level: float, floor: float, pads: np.ndarray, rng) -> np.ndarray:
    """Tilt the spectrum (dB per octave above 300 Hz), set the level (dB re -26 dBFS), add a noise floor (dBFS)."""
    spectrum = np.fft.rfft(spoken)
    octaves = np.log2(np.fft.rfftfreq(len(spoken), 1 / RATE).clip(300) / 300)
    spoken = np.fft.irfft(spectrum * 10 ** (tilt * octaves / 20), len(spoken))
    spoken *= 10 ** ((level - 26) / 20) / np.sqrt(np.mean(spoken**2))
    samples = np.pad(spoken, [int(RATE * pad) for pad in pads])
    samples += 10 ** (floor / 20) * rng.standard_normal(len(samples))
    return samples / max(1.0, np.abs(samples).max() / 0.99)


def evaluation(name: str, label: str, start: float, end: float, rng: np.random.Generator) -> str:
    """A block of an EmoEvaluation file: summary line, three raters' categories (C-E), two raters' affect (A-E)."""
    agreeing = 0 if label == "xxx" else rng.integers(2, 4)
    others = rng.permutation([rating for code, rating in WORDS.items() if code != label])
    votes = [WORDS.get(label)] * agreeing + list(others[: 3 - agreeing])
    scores = np.clip(np.array(PROSODY[label]["affect"]) + rng.integers(-1, 2, (2, 3)), 1, 5)
    mean = ", ".join(f"{v:.4f}" for v in scores.mean(0))
    lines = [f"[{start:.4f} - {end:.4f}]\t{name}\t{label}\t[{mean}]"]
    lines += [f"C-E{i}:\t{vote};\t()" for i, vote in enumerate(votes, 2)]
    lines += [f"A-E{i}:\tval {v}; act {a}; dom  {d};\t()" for i, (v, a, d) in enumerate(scores, 3)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    make_session(Path(sys.argv[1]), int(sys.argv[2]))
