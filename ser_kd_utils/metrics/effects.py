"""Effects and verdicts: the difference of two variants, tested with the fold as the unit.

The seeds of a fold share its training and test speakers, so they are averaged first: more seeds make the difference in
a fold more exact, but they are no further independent observations. The folds share training speakers; the corrected
resampled t-test of Nadeau & Bengio (2003) enlarges the variance of their mean for this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import nctdtrinc, stdtr, stdtrit

from ser_kd_utils.metrics import _metric, _pairs

_UNIT = ["fold", "seed", "utterance"]
_BATCH = 250  # resamples at a time: bounds the memory that their scores take
LEAST_SEEDS = 3  # nothing is decided where any fold has fewer
NEGLIGIBLE = 0.02  # the margin of equivalence, that of the claim of non-inferiority of MLKD


@dataclass(frozen=True, eq=False)
class Effect:
    """A difference of a metric in [0, 1], with intervals of two kinds and a test over folds; nan where undefined.

    difference: mean of `by_fold`, in which folds count alike; of several corpora, their weighted mean; error: its
    corrected standard error; freedom: degrees of freedom of the t-test; seeds: the fewest in any fold; draws: the
    bootstrap's differences.
    """

    difference: float
    error: float
    freedom: float
    by_fold: np.ndarray
    seeds: int
    draws: np.ndarray = field(repr=False)

    @property
    def p(self) -> float:
        """Two-sided p of the corrected t-test over folds."""
        return float(2 * stdtr(self.freedom, -abs(self.difference) / self.error))

    @property
    def detectable(self) -> float:
        """The smallest true difference that a two-sided test at 5 % detects with 80 % power, by the noncentral t
        distribution with the same standard error."""
        return float(self.error * nctdtrinc(self.freedom, 0.2, stdtrit(self.freedom, 0.975)))

    def ends(self, level: float = 0.95) -> np.ndarray:
        """Both intervals at this level, (4,): the ends of the corrected t-interval over folds, then those of the
        percentile bootstrap interval over speakers and utterances, given these trained models."""
        bound, tails = stdtrit(self.freedom, (1 + level) / 2) * self.error, [(1 - level) / 2, (1 + level) / 2]
        return np.array([self.difference - bound, self.difference + bound, *np.quantile(self.draws, tails)])

    def p_above(self, value: float) -> float:
        """One-sided p of the corrected t-test that the true difference is above `value`."""
        return float(stdtr(self.freedom, (value - self.difference) / self.error))


def effect(
    a: pd.DataFrame, b: pd.DataFrame, metric: str = "UA", *, test_train: float, snrs: tuple = (), resamples: int = 2000
) -> Effect:
    """`metric` of `a` minus `b`, two tables of predictions, on the folds and seeds that both have.

    The t-test over k folds takes (1/k + test_train) s^2 as the variance of the mean difference and has k - 1 degrees of
    freedom (Nadeau & Bengio 2003). The correction is exact where the differences of two folds have the correlation
    n_test / (n_train + n_test); no estimate of this variance is unbiased for every correlation (Bengio & Grandvalet
    2004). The bootstrap draws speakers, named in the column `speaker`, and then utterances of each speaker from the
    test speech of all folds together; utterances only where the tables have no such column. Every utterance has the
    same weight there, which its seeds and conditions share.

    test_train: number of test utterances divided by that of training utterances; 0 gives the usual t-test of
    independent folds.
    snrs: of an interaction, two: the difference at the first less that at the second, in dB, within each run. The SNR
    of clean speech is infinite.
    Raises ValueError where no fold and seed is shared, where a shared one lacks an utterance or condition on one side.
    """
    parts = [table[table["snr_db"].fillna(np.inf) == snr] for snr in snrs for table in (a, b)] or [a, b]
    shared = reduce(pd.merge, (table[["fold", "seed"]].drop_duplicates() for table in parts))
    if shared.empty:
        raise ValueError("the tables share no fold and seed in this speech: record both for the same ones")
    tables = [table.merge(shared) for table in parts]
    for first, second in zip(tables[::2], tables[1::2], strict=True):
        _same(first, second)
    # of an interaction, the conditions of the second difference are others, its utterances are not
    _same(*(tables[place][[*_UNIT, "label"]] for place in (0, -2)))
    units = tables[0].drop_duplicates(_UNIT).sort_values(_UNIT)
    # from here on an utterance is one in its run, by number: in the order of `units`
    counted, classes = _pairs(*(t.assign(utterance=t.groupby(_UNIT).ngroup()) for t in tables))

    def statistic(times: np.ndarray) -> np.ndarray:
        """The difference where the utterances of the runs have these weights, (..., utterances of all runs)."""
        scores = [_metric(times @ pairs, classes, metric) for pairs in counted]
        return scores[0] - scores[1] - (scores[2] - scores[3] if snrs else 0)

    run, runs = pd.factorize(pd.MultiIndex.from_frame(units[["fold", "seed"]]), sort=True)
    by_run = pd.Series(statistic((run == np.arange(len(runs))[:, None]).astype(float)))
    by_fold = by_run.groupby(runs.get_level_values(0))
    utterance, _ = pd.factorize(units["utterance"])
    share = 1 / np.bincount(utterance)[utterance]  # an utterance's runs share its weight
    speaker, _ = pd.factorize(units.drop_duplicates("utterance").get("speaker", np.zeros(len(set(utterance)))))
    draws = [statistic(times[:, utterance] * share) for times in _drawn(tuple(speaker.tolist()), resamples)]
    return from_folds(by_fold.mean(), int(by_fold.size().min()), test_train, np.concatenate(draws))


def null(a: pd.DataFrame, **how) -> dict[tuple[int, int], Effect]:
    """Test one variant with two of its seeds by `effect`: this shows what differences chance alone makes.

    Returns an Effect for each pair of the seeds that all folds have; nothing where there are fewer than two. Each
    compares single trainings, so it scatters sqrt(n) times as much by the seed as a difference of means over n seeds.
    how: options of `effect`. Raises ValueError as `effect` does, for instance where the seed also decides which
    utterances are tested.
    """
    had = set.intersection(*(set(fold) for _, fold in a.groupby("fold")["seed"]))
    alone = {seed: a[a["seed"] == seed].assign(seed=0) for seed in sorted(had)}
    return {pair: effect(alone[pair[0]], alone[pair[1]], **how) for pair in combinations(alone, 2)}


def pooled(effects: Sequence[Effect]) -> Effect:
    """Fixed-effect pooling over corpora: it assumes one true difference and weights by inverse corrected variance.

    The variances are estimated from few folds, and the weights favour those that came out small by chance. The textbook
    standard error is therefore too small: with three corpora of five folds, a normal test at 5 % rejects a true null in
    20 % of cases. Two things are done against it. The variance is multiplied by 1 + 4 sum_i w_i (1 - w_i) / (k_i - 3)
    with weights w that sum to 1, as Meier (1953) does with k_i - 1, and the t-test has the degrees of freedom of the
    corpus with the fewest folds. In simulations it then rejects a true null in at most 5 % of cases.

    The bootstraps are pooled with the same weights. A corpus with two or three folds makes the interval infinite, one
    with a single fold makes it nan: then nothing is decided.
    """
    error, freedom = np.array([(each.error, each.freedom) for each in effects]).T
    weight = error**-2 / np.sum(error**-2)
    few = np.divide(weight * (1 - weight), freedom - 2, out=np.full(len(effects), np.inf), where=freedom > 2)
    # all bootstraps start from the same seed; shuffled, those of two corpora are independent of each other
    draws = [np.random.default_rng(i).permutation(each.draws) for i, each in enumerate(effects)]
    difference, by_fold = weight @ [each.difference for each in effects], np.concatenate([e.by_fold for e in effects])
    error, seeds = np.sqrt((1 + 4 * few.sum()) / np.sum(error**-2)), min(each.seeds for each in effects)
    return Effect(float(difference), float(error), float(freedom.min()), by_fold, seeds, weight @ np.array(draws))


def verdict(effect: Effect, p: float, gate: bool = True, margin: float = 0) -> str:
    """ "supported", "contradicted", "negligible", "undecided" or "premise not met": the difference is claimed above 0.

    The claim is decided only where both 95 % intervals lie on the same side of 0, p is under 5 % and every fold has
    three seeds. A difference that is not decided so is negligible where both 90 % intervals lie within `NEGLIGIBLE` of
    0: two one-sided tests at 5 % (Schuirmann 1987), which are not corrected for other claims.

    p: corrected for the family of claims (`holm`).
    gate: False where what the claim presumes does not hold; then the premise is not met.
    margin: where above 0, the claim is non-inferiority: `a` is worse than `b` by less than this, and p is that of
    `p_above(-margin)`. It is supported where both 90 % intervals lie above -margin and p is under 5 %, contradicted
    where both lie below -margin. Each end of a 90 % interval is a one-sided test at 5 %. The margin must be declared
    before the numbers are seen.
    """
    ends = effect.ends(0.9 if margin else 0.95) + margin
    certain = p < 0.05 or (margin > 0 and ends.max() < 0)
    if not gate:
        return "premise not met"
    if effect.seeds < LEAST_SEEDS:
        return "undecided"
    if certain and (ends * ends[0] > 0).all():
        return "supported" if ends[0] > 0 else "contradicted"
    return "negligible" if not margin and np.abs(effect.ends(0.9)).max() < NEGLIGIBLE else "undecided"


def why_undecided(effect: Effect) -> str:
    """The reason why an effect is undecided: too few folds or seeds or, where there are enough, its size."""
    few = ["one fold"] * (len(effect.by_fold) == 1)
    few += [f"fewer than {LEAST_SEEDS} seeds"] * (effect.seeds < LEAST_SEEDS)
    return ", ".join(few) or "not told from chance"


def from_folds(by_fold: Sequence[float], seeds: int, test_train: float, draws: np.ndarray) -> Effect:
    """The Effect of given differences by fold, each a mean over `seeds` or more, and of the bootstrap's differences.

    The fold level is nan where there is one fold, and where all folds agree exactly: then there is no scatter to test
    against.
    """
    folds = len(by_fold := np.asarray(by_fold, dtype=float))
    scatter = by_fold.std(ddof=1) if folds > 1 and np.ptp(by_fold) > 1e-9 else np.nan
    error = float(np.sqrt(1 / folds + test_train) * scatter)
    return Effect(float(by_fold.mean()), error, folds - 1, by_fold, seeds, draws)


def _same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    keys = [*_UNIT, *(key for key in ("label", "condition", "snr_db") if key in a and key in b)]
    first, second = (table[keys].drop_duplicates(ignore_index=True) for table in (a, b))
    if not first.equals(second):  # as a rule they are, in order too
        both = pd.merge(first.astype(str), second.astype(str), how="outer", indicator=True)
        for fold, seed, *odd, side in both[both["_merge"] != "both"].itertuples(index=False):
            which = "first" if side == "left_only" else "second"
            place = f"fold {fold} seed {seed} {' '.join(odd)} is only in the {which} table"
            raise ValueError(f"a paired test needs the same {', '.join(keys[2:])} on both sides; {place}")


@lru_cache(maxsize=2)  # most comparisons of a corpus draw from the same utterances
def _drawn(speaker: tuple[int, ...], resamples: int) -> list[np.ndarray]:
    """How often each utterance is drawn, in batches (resamples, utterances): first speakers, then utterances of each.

    speaker: of each utterance. A speaker of n utterances who is drawn c times gives c times n draws from these.
    """
    sizes, rng, batches = np.bincount(speaker), np.random.default_rng(0), []
    for first in range(0, resamples, _BATCH):
        batches.append(times := np.empty((min(_BATCH, resamples - first), len(speaker)), np.int32))
        chosen = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), len(times))
        for one, size in enumerate(sizes):
            times[:, np.equal(speaker, one)] = rng.multinomial(chosen[:, one] * size, np.full(size, 1 / size))
    return batches
