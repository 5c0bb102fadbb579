"""How far two sets of prompts can be told apart by form alone: openings, lengths and function words, no word of content.

Where harmful and harmless training prompts differ in form, a model can learn the form instead of the harm: it refuses what
opens as the harmful ones do. An AUC of 0.5 says that form carries nothing, 1 that it gives every row away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dat_ray.data.text import normalize
from dat_ray.measures.intervals import Interval, z_score

# Articles, pronouns, prepositions, conjunctions, auxiliaries, question words and particles, as `normalize` leaves them.
_WORDS = (
    "a an the this that these those each every all any some no both either another other such "
    "i me my we us our you your he him his she her it its they them their one who whom whose which what "
    "about above across after against along among around at before behind below between by down during for from in into "
    "near of off on onto out over past per through to toward under until up upon with within without "
    "and but or nor so if because while when where why how than as since though unless whether "
    "am is are was were be been being do does did doing have has had can could will would shall should may might must "
    "not never only just too very more most less least then there here again once also even "
)
FUNCTION_WORDS = tuple(_WORDS.split())
# Ridge: as many rows as speak against a feature; one that occurs once keeps half its pull.
PENALTY = 1.0
FOLDS = 5
# Prompts of either set whose form is compared within seconds: the probe grows with the openings.
MOST = 1000
# Above it the features that give the rows away are named.
LIMIT = 0.65
_TOLD = 12


@dataclass(frozen=True)
class StyleFeature:
    """A feature of form and how it parts the two sets.

    Attributes:
        name: such as `opens "teach me"`, `word "does"` or `words`.
        first: its mean in the first set: a share of the prompts, a count per prompt, or a length.
        second: the same in the second set.
        pull: its part in the distance between the sets' mean scores; positive where it speaks for the first set.
    """

    name: str
    first: float
    second: float
    pull: float


@dataclass(frozen=True)
class StyleAuc:
    """How well a linear probe on form tells prompts of two sets apart.

    Attributes:
        auc: chance that a held-out prompt of the first set scores above one of the second, ties counting half; `n` is the
            number of both. The interval is wider than one of a fixed probe, as the probes share their training prompts.
        first: prompts of the first set.
        second: prompts of the second set.
        features: those that part the sets most, in that order, of the probe on all prompts.
    """

    auc: Interval
    first: int
    second: int
    features: tuple[StyleFeature, ...]


def style_auc(first: Sequence[str], second: Sequence[str], folds: int = FOLDS, seed: int = 0, twins: int = 0) -> StyleAuc:
    """Cross-validated AUC of a ridge probe on openings, lengths and function words; both sets weigh the same.

    The probe sees the first word and the first two words, the numbers of words and characters, and how often each of
    `FUNCTION_WORDS` occurs. Pairs are compared within a fold, where one probe scored both.

    Args:
        first: prompts, such as harmful goals.
        second: prompts, such as those of a retain set.
        folds: of the cross-validation, each with its share of either set.
        seed: of the folds; the same prompts in the same order give the same figure.
        twins: so many prompts of the second set, from its first on, have the form of the one at their place in the first
            set and lie in its fold. Apart, a twin that was learned speaks against the one that is held out, and the figure
            falls below what form gives away, even below 0.5.

    Raises:
        ValueError: a set has fewer prompts than there are folds, or fewer than `twins`, or there are fewer than two folds.
    """
    sizes = len(first), len(second)
    if folds < 2 or min(sizes) < folds:
        raise ValueError(f"{sizes} prompts cannot be put in {folds} folds: two or more, each with a prompt of either set")
    if not 0 <= twins <= min(sizes):
        raise ValueError(f"{twins} twins among {sizes} prompts: as many as the smaller set has at most")
    names, table = _table([*first, *second])
    is_first = np.arange(len(table)) < len(first)
    fold = np.empty(len(table), dtype=np.int64)
    rng = np.random.default_rng(seed)
    for rows in np.arange(len(first)), np.arange(len(first) + twins, len(table)):
        fold[rng.permutation(rows)] = np.arange(len(rows)) % folds
    fold[len(first) : len(first) + twins] = fold[:twins]
    higher = pairs = 0.0
    for number in range(folds):
        held = fold == number
        scores = table[held] @ _probe(table[~held], is_first[~held])
        positive, negative = scores[is_first[held]], scores[~is_first[held]]
        higher += auc(positive, negative) * len(positive) * len(negative)
        pairs += len(positive) * len(negative)
    # Nadeau and Bengio (2003, Mach. Learn. 52:239): held-out prompts over trained ones, beside one over the folds.
    interval = auc_interval(higher / pairs, *sizes, inflation=1 + folds / (folds - 1))
    means = table[is_first].mean(axis=0), table[~is_first].mean(axis=0)
    pulls = _probe(table, is_first) * (means[0] - means[1])
    order = np.argsort(-np.abs(pulls), kind="stable")[:_TOLD]
    raw = _lengths([*first, *second])
    shown = [np.concatenate([raw[rows].mean(axis=0), mean[2:]]) for rows, mean in zip((is_first, ~is_first), means, strict=True)]
    features = tuple(StyleFeature(names[i], float(shown[0][i]), float(shown[1][i]), float(pulls[i])) for i in order)
    return StyleAuc(interval, len(first), len(second), features)


def style_of(first: Sequence[str], second: Sequence[str]) -> StyleAuc | None:
    """`style_auc` of the first prompts of either set; None with too few of either."""
    return style_auc(first[:MOST], second[:MOST]) if min(len(first), len(second)) >= FOLDS else None


def style_sentence(found: StyleAuc, first: str, second: str) -> str:
    """The AUC, what it means, and the features behind it where it is far from chance.

    Args:
        found: of two sets.
        first, second: what their rows are, in the plural.
    """
    auc = found.auc
    assert auc.value is not None
    value = f"{auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}]"
    text = f"form tells {found.first:,} {first} from {found.second:,} {second} with an AUC of {value}"
    if auc.value <= LIMIT:
        return text
    telling = ", ".join(f"{one.name} ({one.first:.2g} and {one.second:.2g})" for one in found.features[:3])
    return f"{text}: a model may learn the form in place of the harm; most telling, by their means: {telling}"


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of pairs in which the positive score is higher, ties counting half, by mean ranks (Mann and Whitney 1947)."""
    scores = np.concatenate([positive, negative])
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def auc_interval(value: float, positives: int, negatives: int, confidence: float = 0.95, inflation: float = 1.0) -> Interval:
    """Score interval of an AUC, which has a width at 0 and 1 too (Newcombe 2006, Stat. Med. 25:559, method 5).

    The limits are the values from which the one found lies z standard errors away, with the variance of Hanley and McNeil
    (1982, Radiology 143:29) for sets of equal size, times `inflation`.
    """
    z, balanced = z_score(confidence), (positives + negatives) / 2 - 1

    def too_far(other: float) -> bool:
        spread = 1 + balanced * (1 - other) / (2 - other) + balanced * other / (1 + other)
        return bool((value - other) ** 2 > z * z * inflation * other * (1 - other) * spread / (positives * negatives))

    def limit(outside: float) -> float:
        inside = value
        for _ in range(50):
            middle = (outside + inside) / 2
            outside, inside = (middle, inside) if too_far(middle) else (outside, middle)
        return inside

    low = 0.0 if value == 0 else limit(0.0)
    high = 1.0 if value == 1 else limit(1.0)
    return Interval(value, low, high, positives + negatives)


def _table(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of the features and their values, shape (texts, features): lengths, counts of function words, openings.

    Lengths are centered and of unit deviation, as large as a count; the constant stands last.
    """
    words = [normalize(text).split() for text in texts]
    openings = [{" ".join(one[:size]) for size in (1, 2)} for one in words]
    known = sorted(set().union(*openings))
    lengths = _lengths(texts)
    deviation = lengths.std(axis=0)
    scaled = (lengths - lengths.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    counts = [[one.count(word) for word in FUNCTION_WORDS] for one in words]
    opens = [[float(start in one) for start in known] for one in openings]
    names = ["words", "characters", *(f'word "{word}"' for word in FUNCTION_WORDS), *(f'opens "{start}"' for start in known)]
    return [*names, "constant"], np.hstack([scaled, counts, opens, np.ones((len(texts), 1))])


def _lengths(texts: Sequence[str]) -> np.ndarray:
    """Words and characters of every text, shape (texts, 2)."""
    return np.array([[len(normalize(text).split()), len(text)] for text in texts], dtype=np.float64)


def _probe(table: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Weights of the features: weighted least squares toward 1 and -1, both sets worth the same, with a ridge."""
    weights = np.where(is_first, 0.5 / is_first.sum(), 0.5 / (~is_first).sum()) * len(table)
    penalty = np.full(table.shape[1], PENALTY)
    penalty[-1] = 1e-9
    gram = (table * weights[:, None]).T @ table + np.diag(penalty)
    return np.linalg.solve(gram, table.T @ (weights * np.where(is_first, 1.0, -1.0)))
