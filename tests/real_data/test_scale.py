"""The workload of bench_scale.py at two small sizes: memory does not grow with the corpus, and no utterance is lost."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pandas as pd

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_scale.py"
EVERY = 16  # of the test utterances, one is scored


def test_twice_the_speech_takes_no_more_memory(shared_data):
    spec = importlib.util.spec_from_file_location("bench_scale", BENCHMARK)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    ids = pd.read_csv(shared_data / "metadata" / "iemocap_4class_ids.csv")
    parts = [bench.part_of(ids, Fraction(1, size)) for size in (16, 8)]
    assert parts[1].seconds.sum() > 1.9 * parts[0].seconds.sum()
    with ThreadPoolExecutor() as pool:
        small, large = pool.map(lambda part: bench.in_fresh_process(part, ["DKDFMH"], EVERY), parts)
    for part, found in zip(parts, (small, large), strict=True):
        session = part.session.value_counts()  # of fold 1, session 1 is the test and session 2 dev
        train = len(part) - session[1] - session[2]
        scored = -(-session[1] // EVERY)
        assert found.utterances.tolist() == [0, len(part), len(part), len(part), train, train, scored]
    grown = large.anonymous - small.anonymous
    assert (grown < 0.25 * small.anonymous + 30).all(), pd.concat([small.anonymous, large.anonymous], axis=1)
