from __future__ import annotations

import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from ser_kd_utils.data.corpora import demo, load_corpus
from ser_kd_utils.files import cache_root

SUMMARY = re.compile(r"^\[([\d.]+) - ([\d.]+)\]\t(\S+)\t(\w{3})\t\[([\d.]+), ([\d.]+), ([\d.]+)\]$")
WORDS = {"Anger": "ang", "Happiness": "hap", "Excited": "exc", "Neutral": "neu", "Sadness": "sad", "Frustration": "fru"}


@pytest.fixture(scope="session")
def root() -> Path:
    return demo.ensure_demo(cache_root())


@pytest.fixture(scope="session")
def blocks(root) -> list[tuple[Path, list[str]]]:
    """Every utterance's lines in the EmoEvaluation files, with the path its audio must have."""
    found = []
    for file in sorted(root.glob("Session*/dialog/EmoEvaluation/*.txt")):
        head, *rest = file.read_text().split("\n\n")
        assert head == "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
        for block in rest:
            name = block.split("\t")[1]
            found.append((file.parents[2] / "sentences" / "wav" / file.stem / f"{name}.wav", block.strip().split("\n")))
    return found


def test_content_is_the_recorded_one(root):
    import parselmouth

    assert root.name == f"demo-{demo.CHECKSUM[:12]}"
    # on another Praat or platform ensure_demo warns; the tested one must agree
    if (parselmouth.__version__, sys.platform) == ("0.4.7", "linux"):
        assert demo.checksum(root) == demo.CHECKSUM
        with warnings.catch_warnings(action="error"):
            demo.ensure_demo(root.parent)


def test_a_fresh_process_makes_the_same_session(root, tmp_path):
    subprocess.run([sys.executable, demo.__file__, str(tmp_path), "4"], check=True)
    files = [p.relative_to(tmp_path) for p in sorted(tmp_path.rglob("*")) if p.is_file()]
    assert len(files) == 2 * sum(demo.COUNTS.values()) + 4
    assert all((tmp_path / f).read_bytes() == (root / f).read_bytes() for f in files)


def test_loader_reads_it():
    corpus = load_corpus("demo")
    assert corpus.synthetic
    assert corpus.manifest.label.value_counts().to_dict() == {"angry": 120, "happy": 200, "neutral": 200, "sad": 120}
    per_voice = pd.crosstab(corpus.manifest.speaker, corpus.manifest.label)
    assert per_voice.shape == (10, 4)
    assert (per_voice == [12, 20, 20, 12]).all(axis=None)
    speakers = corpus.manifest.groupby("session").speaker.unique()
    assert [sorted(s) for s in speakers] == [[f"Ses0{k}F", f"Ses0{k}M"] for k in range(1, 6)]


def test_layout_is_iemocaps(root, blocks):
    assert len(blocks) == 10 * sum(demo.COUNTS.values()) == len(list(root.rglob("*.wav")))
    ends = {}
    for path, (summary, *ratings) in blocks:
        start, end, name, label, *affect = SUMMARY.match(summary).groups()
        assert re.fullmatch(r"Ses0[1-5][FM]_(impro0\d|script0\d_\d)_[FM]\d{3}", name)
        assert soundfile.info(path).duration == pytest.approx(float(end) - float(start), abs=2e-4)
        assert float(start) > ends.get(path.parent, 0)  # turns follow each other
        ends[path.parent] = float(end)
        votes = [WORDS[re.fullmatch(r"C-E\d:\t(\w+);\t\(\)", line)[1]] for line in ratings[:3]]
        pattern = r"A-E\d:\tval (\d); act (\d); dom  (\d);\t\(\)"
        scores = [[int(v) for v in re.fullmatch(pattern, line).groups()] for line in ratings[3:]]
        assert np.mean(scores, axis=0) == pytest.approx([float(v) for v in affect])
        most = max(set(votes), key=votes.count)
        assert label == (most if votes.count(most) > 1 else "xxx")
    assert {s.split("\t")[2] for _, (s, *_) in blocks} == {"ang", "hap", "exc", "neu", "sad", "fru", "xxx"}


def test_audio(blocks):
    lengths = []
    for path, _ in blocks:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        samples, _ = soundfile.read(path)
        lengths.append(info.duration)
        assert np.abs(samples).max() < 1 - 2**-15  # not clipped
        frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
        assert frames.std(1).min() > 1e-4  # a noise floor, never digital silence
    assert min(lengths) >= 0.9
    assert max(lengths) <= 1.8
    assert 1.2 < np.mean(lengths) < 1.45


def test_prosody_goes_where_the_literature_says(root):
    """Measured on the audio of two sessions: medians over a class of F0, its spread, length, tilt and level."""
    import parselmouth

    rows = []
    for row in load_corpus("demo").manifest.query("session in ['2', '5']").itertuples():
        samples, _ = soundfile.read(row.path)
        f0 = parselmouth.Sound(samples, 16_000).to_pitch(0.01, 60, 500).selected_array["frequency"]
        semitones = 12 * np.log2(f0[f0 > 0] / {"F": 220, "M": 125}[row.gender])
        power, hertz = np.abs(np.fft.rfft(samples)) ** 2, np.fft.rfftfreq(len(samples), 1 / 16_000)
        tilt = 10 * np.log10(power[(hertz > 1000) & (hertz < 5000)].sum() / power[hertz < 1000].sum())
        spread = np.ptp(np.percentile(semitones, [10, 90]))
        level = 10 * np.log10(np.mean(samples**2))
        rows.append((row.label, semitones.mean(), spread, len(samples) / 16_000, tilt, level))
    table = pd.DataFrame(rows, columns=["label", "f0", "spread", "seconds", "tilt", "level"]).groupby("label").median()
    angry, happy, neutral, sad = (table.loc[label] for label in ("angry", "happy", "neutral", "sad"))
    assert happy.f0 > neutral.f0 + 2
    assert sad.f0 < neutral.f0 - 1
    assert min(angry.spread, happy.spread) > neutral.spread > sad.spread
    assert angry.seconds < neutral.seconds < sad.seconds
    assert angry.tilt > happy.tilt > neutral.tilt > sad.tilt
    assert angry.level > neutral.level > sad.level


def write_little(folder: Path) -> None:
    (folder / "Session1").mkdir(parents=True)
    (folder / "Session1" / "a.wav").write_text("silence")


@pytest.fixture
def little(monkeypatch, tmp_path):
    """A demo corpus of one small file, and of that checksum."""
    write_little(tmp_path / "little")
    monkeypatch.setattr(demo, "CHECKSUM", demo.checksum(tmp_path / "little"))
    monkeypatch.setattr(demo, "_make", write_little)


def test_made_once(little, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(demo, "_make", lambda folder: (calls.append(folder), write_little(folder)))
    first, second = demo.ensure_demo(tmp_path), demo.ensure_demo(tmp_path)
    assert first == second == tmp_path / f"demo-{demo.CHECKSUM[:12]}"
    assert len(calls) == 1
    assert not list(tmp_path.glob(".unfinished*"))


def test_of_two_callers_at_once_one_makes_it_and_the_other_waits(little, monkeypatch, tmp_path):
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.2)
        write_little(folder)

    monkeypatch.setattr(demo, "_make", make)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(demo.ensure_demo, [tmp_path] * 2)
    assert first == second and len(calls) == 1


def test_what_a_killed_process_left_is_not_in_the_way(little, tmp_path):
    left = tmp_path / f".unfinished-demo-{demo.CHECKSUM[:12]}"
    (left / "Session2").mkdir(parents=True)
    folder = demo.ensure_demo(tmp_path)
    assert not left.exists() and not (folder / "Session2").exists()


def test_failure_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setitem(demo.VOICES, 6, {})
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "session.py"))
    (tmp_path / "session.py").write_text("import sys; sys.exit('no voice' if sys.argv[2] == '6' else 0)")
    with pytest.raises(subprocess.CalledProcessError, match="session.py.*'6'"):
        demo.ensure_demo(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_another_content_warns_with_both_checksums(little, tmp_path):
    folder = demo.ensure_demo(tmp_path)
    (folder / "Session1" / "a.wav").write_text("damaged")
    for _ in range(2):  # whenever used
        with pytest.warns(UserWarning, match=f"checksum {demo.checksum(folder)}, not {demo.CHECKSUM}"):
            demo.ensure_demo(tmp_path)
