"""Tables of decoupled distillation into a CNN (DKDFMH), from the records of two protocols.

P1 is the paper's likely protocol: a random fifth of the utterances is the test, utterances shorter than a segment are
left out, and the epoch is chosen on the test itself, so it is optimistic. P2 keeps the test's speakers out of training,
tests all utterances and chooses the epoch on dev speakers. Their numbers never share a column unless the table is about
the difference (`optimism_table`). p1, p2: the records of each, which may be none.

Scores are those of clean speech unless a column says noisy; intervals, runs and "noisy" as in `tables`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ser_kd_utils.ablation_tables import (
    claims_among,
    comparisons,
    noise_table,
    part_table,
    rows_together,
    shared,
    without_nan,
)
from ser_kd_utils.metrics import interval
from ser_kd_utils.records import Run, predictions
from ser_kd_utils.rows import CNN_ROWS
from ser_kd_utils.tables import (
    BY_RUN,
    clean_part,
    command,
    compared,
    design,
    noisy_part,
    percent,
    published_values,
    verdicts,
)

GROUPS = ("cnn", "cnn-part", "cnn-noise")
FULL = "cnn-dkd"
_KINDS = ("tckd", "nckd", "kd-same-temperature", "alpha-", "beta-", "temperature-", "heads-", "attention-text", "mfcc")
ORDER = tuple(f"cnn-{kind}" for kind in _KINDS)
"""How the names of ablations begin, in the order of their table."""
PAIRS = (
    (FULL, "cnn-alone"),
    ("cnn-kd", "cnn-alone"),
    (FULL, "cnn-kd"),
    ("cnn-teacher", "cnn-alone"),
    (FULL, "cnn-teacher"),
    ("cnn-wav2vec2", "cnn-alone"),
    ("cnn-wav2vec2", FULL),
    (FULL, "cnn-kd-same-temperature"),
)
"""Stored logits are not among them: their teacher may have seen the test."""
NOISY_PAIRS = (("cnn-alone-noisy", "cnn-alone"), ("cnn-dkd-noisy", "cnn-alone-noisy"))
"""Trained in noise against the row that was not, and distilled in noise against not."""
NOISE_ROWS = ("cnn-alone", FULL, "cnn-alone-noisy", "cnn-dkd-noisy")
CLAIMS = (
    ("decoupled distillation helps the student", FULL, "cnn-alone", "clean"),
    ("it helps more than classical distillation, each at its own temperature", FULL, "cnn-kd", "clean"),
    ("it helps more than classical distillation at the same temperature", FULL, "cnn-kd-same-temperature", "clean"),
    ("classical distillation helps the student", "cnn-kd", "cnn-alone", "clean"),
    ("what the teacher says of the other classes carries it", "cnn-nckd", "cnn-tckd", "clean"),
    ("the student beats its teacher", FULL, "cnn-teacher", "clean"),
    ("a teacher of another architecture serves better", "cnn-wav2vec2", FULL, "clean"),
    ("distillation helps in noise, after training in noise", "cnn-dkd-noisy", "cnn-alone-noisy", "noisy"),
    ("training in noise helps in noise", "cnn-alone-noisy", "cnn-alone", "noisy"),
)
"""The paper's first claim, that of its loss (the next three) and questions of ours; the row that should be better, the
other one, the speech to test on."""


def _own(runs: Sequence[Run], row: str = "") -> list[Run]:
    """The records of this method, of one row if it is named."""
    return [run for run in runs if run.info["group"] in GROUPS and row in ("", run.info["row"])]


def _told(runs: Sequence[Run], row: str, checkpoint: str) -> pd.DataFrame:
    """The row's predictions on clean speech; without rows where nothing is recorded."""
    if some := _own(runs, row):
        return clean_part(predictions(some, checkpoint))
    return pd.DataFrame(columns=["utterance", "seed", "label"])


def _wa_ua(wa: pd.DataFrame, ua: pd.DataFrame) -> tuple[str, str]:
    return percent(interval(wa, "WA")), percent(interval(ua))


def _abstract() -> str:
    """The method's published scores with what is known of their protocol and source."""
    table = published_values("dkdfmh_results")
    table = table[table["table"] == "abstract"].set_index("metric")
    dataset, source = table.loc["UA", ["dataset", "source"]]
    wa, ua = table["value"][["WA", "UA"]]
    return f"{wa:.1f} / {ua:.1f}, {dataset}, likely P1 ({source.partition(' (')[0]})"


def dkd_table(p1: Sequence[Run], p2: Sequence[Run], changes: str = "") -> pd.DataFrame:
    """The main rows, WA and UA in percent: P1 at the epochs with the best test WA and the best test UA, as a paper of
    that protocol reports, P2 at the epoch with the best dev UA.

    The published scores are those of another corpus unless this is IEMOCAP. changes: as for `mlkd_table`.
    """
    records = []
    for row in CNN_ROWS:
        first, second = _own(p1, row), _own(p2, row)
        if not first + second:
            continue
        one = (second or first)[0]
        ours = ("WA P1", "UA P1", "folds x seeds P1", "WA P2", "UA P2", "UA noisy P2", "folds x seeds P2")
        cells = dict.fromkeys(ours, "")
        if first:
            wa, ua = _told(p1, row, "test-WA"), _told(p1, row, "test-UA")
            cells |= zip(ours[:3], (*_wa_ua(wa, ua), design(ua)), strict=True)
        if second:
            table = predictions(second)
            clean, noisy = clean_part(table), percent(interval(noisy_part(table)))
            cells |= zip(ours[3:], (*_wa_ua(clean, clean), noisy, design(table)), strict=True)
        trained = pd.DataFrame([run.info for run in first + second])[["fold", "seed"]]
        records.append(
            {"row": row, "model": CNN_ROWS[row].title, "parameters": f"{one.info['parameters'] / 1e3:.1f}k"}
            | cells
            | {"published WA / UA": _abstract() if row == FULL else "", "command": command(one, trained, changes)}
        )
    return pd.DataFrame(records)


def optimism_table(p1: Sequence[Run], p2: Sequence[Run], row: str = "cnn-alone") -> pd.DataFrame:
    """What P1 is worth: one model scored in ever other ways; WA and UA in percent.

    Rungs 1 to 3: P1 at the epoch chosen on the test (WA and UA each at its own), on dev, and at the last one; 6 to 8:
    the same for P2. 4 and 5: P1 and P2 on the utterances (and seeds) that both tested, whatever the fold; left out
    where these are under half of P2's, as with a single fold. A step is the rung's UA less that of the rung it is
    compared with. Step 5 is tested, paired over utterances: what it costs that the speakers are unheard (and that P2
    trains on another part of the corpus: see `sizes` in the protocol cards). The other steps have no p: an epoch
    chosen on the test cannot score less there than another one, so a small p would say nothing.

    Of IEMOCAP, P1 has the improvised speech only and takes excitement for happiness: what P2 trains on besides is in
    step 5, and excited and happy, the names of one class there, count as the same.
    """
    names = ("test-WA", "test-UA", "best", "last")
    random, apart = ({name: _told(runs, row, name) for name in names} for runs in (p1, p2))
    own = "speaker-independent" if all(run.info["protocol"]["speaker_independent"] for run in p2) else "own split"
    key = ["utterance", "seed"]
    common = apart["best"][key].merge(random["best"][key])
    if 2 * len(common) < len(apart["best"]):
        common = common[:0]
    both, both_random = (table["best"].merge(common) for table in (apart, random))
    named = both_random[[*key, "label"]].merge(both[[*key, "label"]], on=key)
    words = dict(zip(named["label_x"], named["label_y"], strict=True))
    both_random = both_random.replace({"label": words, "prediction": words})
    rungs: list[tuple] = [  # number, protocol, evaluation, tables for WA and UA, rung compared with, its table
        (1, "P1", "random split, best test epoch", random["test-WA"], random["test-UA"], 0, None),
        (2, "P1", "random split, best dev epoch", *2 * (random["best"],), 1, random["test-UA"]),
        (3, "P1", "random split, last epoch", *2 * (random["last"],), 1, random["test-UA"]),
        (4, "P1", "random split, best dev epoch, tested by both", *2 * (both_random,), 0, None),
        (5, "P2", f"{own}, best dev epoch, tested by both", *2 * (both,), 4, both_random),
        (6, "P2", f"{own}, best test epoch", apart["test-WA"], apart["test-UA"], 0, None),
        (7, "P2", f"{own}, best dev epoch", *2 * (apart["best"],), 6, apart["test-UA"]),
        (8, "P2", f"{own}, last epoch", *2 * (apart["last"],), 6, apart["test-UA"]),
    ]
    points, records = "step, points", []
    for number, protocol, evaluation, for_wa, for_ua, against, other in rungs:
        if for_ua.empty:
            continue
        wa, ua = _wa_ua(for_wa, for_ua)
        cells = {"rung": number, "split": protocol, "evaluation": evaluation, "WA": wa, "UA": ua}
        cells |= {"utterances": for_ua["utterance"].nunique(), "folds x seeds": design(for_ua)}
        if against:
            step = compared(for_ua, other, points, same_folds=number != 5)
            cells |= {"against": f"rung {against}"} | step | ({} if number == 5 else {"p": None})
        records.append(cells)
    first = ["rung", "split", "evaluation", "WA", "UA", "utterances", "against", points]
    table = pd.DataFrame(records, columns=[*first, "95 % interval", "p", *BY_RUN, "folds x seeds"])
    return without_nan(table.astype({"p": float}).round({points: 1, "p": 4}))


def published_table() -> pd.DataFrame:
    """What is published of the method and of the network it builds on, WA and UA in percent, each with its protocol."""
    table = pd.concat([published_values("dkdfmh_results"), published_values("dkdfmh_ancestor_baselines")])
    table = table[table["method"].fillna("").str.contains("DKDFMH|Head Fusion")]
    line, metrics = ["method", "dataset", "condition", "source"], ["WA", "UA", "WA_std", "UA_std"]
    wide = table.pivot(index=line, columns="metric", values="value").reset_index().rename_axis(columns=None)
    return without_nan(wide[[*line[:3], *metrics, "source"]])


def dkd_comparison_table(p2: Sequence[Run]) -> pd.DataFrame:
    """Differences of UA in points between main rows in clean speech, and between rows trained in noise in noisy speech,
    Holm-corrected over the table."""
    points = "UA, points"
    pairs = [*((*pair, "clean") for pair in PAIRS), *((*pair, "noisy") for pair in NOISY_PAIRS)]
    found = comparisons(_own(p2), pairs, points)
    return verdicts(found, ["rows", "speech", points], "first is better", "second is better")


def _place(name: str) -> tuple[int, float]:
    """Where an ablation stands in its table: as its name begins, then by its number."""
    beginnings = ((place, start) for place, start in enumerate(ORDER) if name.startswith(start))
    place, start = next(beginnings, (len(ORDER), name))
    return place, float(name.removeprefix(start) or 0)


def dkd_ablation_table(p2: Sequence[Run]) -> pd.DataFrame:
    """Decoupled distillation with one part changed against it as it is, on the folds and seeds both have.

    UA in percent, clean and noisy; the difference that is tested is that of clean speech.
    """
    rows = {run.info["row"]: run.info for run in _own(p2) if run.info["group"] == "cnn-part"}
    found = ((rows[name], shared(_own(p2), name, FULL)) for name in sorted(rows, key=_place))
    return part_table(((info, *tables) for info, tables in found if tables), clean_part, "DKD")


def confusion_tables(p2: Sequence[Run]) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Clean predictions of the distilled students, and of the one alone, on the same folds and seeds.

    TCKD and NCKD alone are among them where they were recorded as often as the whole.
    """
    names = [name for name in ("cnn-alone", "cnn-kd", FULL) if _own(p2, name)]
    if len(names) < 3:
        return {}, pd.DataFrame()
    names += [part for part in ("cnn-tckd", "cnn-nckd") if len(_own(p2, part)) >= len(_own(p2, FULL))]
    base, *others = (clean_part(table) for table in shared(_own(p2), *names))
    return dict(zip(names[1:], others, strict=True)), base


def noise_rows(p2: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Predictions of the students trained clean or in noise, on the folds and seeds that those recorded share."""
    return rows_together(_own(p2), NOISE_ROWS)


def dkd_noise_table(p2: Sequence[Run]) -> pd.DataFrame:
    """The students trained clean or in noise: see `ablation_tables.noise_table`."""
    return noise_table(noise_rows(p2), dict([(FULL, "cnn-alone"), *NOISY_PAIRS]))


def dkd_claims_table(p2: Sequence[Run]) -> pd.DataFrame:
    """Each claim whose rows are recorded, with its test: see `ablation_tables.claims_among`."""
    return claims_among(_own(p2), CLAIMS)
