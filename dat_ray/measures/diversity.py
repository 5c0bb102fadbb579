"""How different the prompts of one behavior are from each other.

Every statistic is computed within a behavior and then averaged over behaviors, so that a set does not look
diverse only because its behaviors differ. Intervals are over behaviors: of a share of prompts that is often none or all of them
Wilson's, which has a width there too, of other statistics a bootstrap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dat_ray.data.text import features, split_unspaced
from dat_ray.measures.intervals import NOTHING, Interval, cluster_bootstrap, wilson_mean

_WORD = re.compile(r"\w+", re.UNICODE)
# Token-set Jaccard similarity at which a prompt counts as a near-duplicate of an earlier one.
NEAR_DUPLICATE = 0.8
# Pairs grow with the square: beyond this many prompts a seeded sample of a behavior stands for it.
MAX_PROMPTS_FOR_PAIRS = 400
SIMILARITY = "token-set Jaccard"
# Longest n-grams of the Vendi score's kernel.
VENDI_GRAMS = 4


@dataclass(frozen=True)
class Diversity:
    """Statistics of a set of prompts; every interval is over behaviors.

    Attributes:
        prompts: how many there are.
        behaviors: how many behaviors they belong to.
        unique: share of a behavior's prompts whose normalized text differs from every earlier one.
        near_duplicate: share with a token-set Jaccard similarity of at least `NEAR_DUPLICATE` to an earlier one.
        similarity: mean pairwise token-set Jaccard similarity (0 disjoint, 1 same words).
        distinct_1: distinct words over words (Li et al. 2016, arXiv 1510.03055).
        distinct_2: distinct word pairs over word pairs.
        words: mean length in words.
        length_quantiles: words at 0, 25, 50, 75 and 100 % of all prompts.
        similarity_measure: what `similarity` is.
        effective: Vendi score over the number of prompts: the share of them that counts as different, from 1/n (all the
            same) to 1 (nothing in common), by their word n-grams; see `vendi_score`. Unlike self-BLEU it needs no
            reference set, and is comparable between sets of different size.
        leaked: share of prompts that hold the whole response they are for, word by word.
        copied: mean share of the response's word pairs that a prompt holds.
        model_calls: mean forward passes of the sampler for a prompt.
        log_likelihood: bound on log p(x | y), mean of nats a token; only where the sampler was asked for it.
        gain: how much more likely, in nats a token, a prompt is given its own response than another behavior's.
    """

    prompts: int
    behaviors: int
    unique: Interval
    near_duplicate: Interval
    similarity: Interval
    distinct_1: Interval
    distinct_2: Interval
    words: Interval
    length_quantiles: tuple[float, ...]
    similarity_measure: str = SIMILARITY
    effective: Interval = NOTHING
    leaked: Interval = NOTHING
    copied: Interval = NOTHING
    model_calls: Interval = NOTHING
    log_likelihood: Interval = NOTHING
    gain: Interval = NOTHING

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def diversity(
    prompts: Mapping[str, Sequence[str]], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Diversity:
    """Diversity of each behavior's prompts, averaged over behaviors.

    Args:
        prompts: behavior id to its prompts; behaviors without prompts are left out.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the samples that stand for very large behaviors.
    """
    words = {key: [tokens(text) for text in texts] for key, texts in prompts.items() if texts}

    def over_behaviors(values: Mapping[str, float | None]) -> Interval:
        groups = {key: [value] for key, value in values.items() if value is not None}
        return cluster_bootstrap(groups, confidence=confidence, resamples=resamples, seed=seed)

    def share(values: Mapping[str, float]) -> Interval:
        return wilson_mean([values[key] for key in sorted(values)], confidence)

    pairwise = {key: _pairwise(lists, seed) for key, lists in words.items()}
    lengths = [len(one) for lists in words.values() for one in lists]
    quantiles = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).tolist() if lengths else []
    return Diversity(
        prompts=len(lengths),
        behaviors=len(words),
        unique=share({key: len({tuple(one) for one in lists}) / len(lists) for key, lists in words.items()}),
        near_duplicate=share({key: near for key, (near, _, _) in pairwise.items()}),
        similarity=over_behaviors({key: mean for key, (_, mean, _) in pairwise.items()}),
        distinct_1=over_behaviors({key: distinct_n(lists, 1) for key, lists in words.items()}),
        distinct_2=over_behaviors({key: distinct_n(lists, 2) for key, lists in words.items()}),
        words=over_behaviors({key: sum(map(len, lists)) / len(lists) for key, lists in words.items()}),
        length_quantiles=tuple(quantiles),
        effective=over_behaviors({key: effective for key, (_, _, effective) in pairwise.items()}),
    )


def tokens(text: str) -> list[str]:
    """Case-folded words; characters in a script without spaces."""
    return [unit for word in _WORD.findall(text.casefold()) for unit in split_unspaced(word)]


def distinct_n(word_lists: Sequence[Sequence[str]], n: int) -> float | None:
    """Distinct n-grams over all n-grams of a set of texts; None where no text has n words."""
    grams = [tuple(one[i : i + n]) for one in word_lists for i in range(len(one) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def jaccard_matrix(word_lists: Sequence[Sequence[str]]) -> np.ndarray:
    """Token-set Jaccard similarity of every pair, shape (n, n); two texts without words are equal (1)."""
    sets = [features(words) for words in word_lists]
    vocabulary = {word: index for index, word in enumerate({word for one in sets for word in one})}
    present = np.zeros((len(word_lists), len(vocabulary)), dtype=np.float32)
    for row, one in enumerate(sets):
        present[row, [vocabulary[word] for word in one]] = 1
    shared = present @ present.T
    sizes = present.sum(axis=1)
    union = sizes[:, None] + sizes[None, :] - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def vendi_score(word_lists: Sequence[Sequence[str]]) -> float:
    """The effective number of different texts (Friedman and Dieng 2023, TMLR, arXiv 2210.02410).

    exp of the entropy of the eigenvalues of K / n, with K the texts' n-gram similarities, as that paper does for text: the
    cosine between their counts of word n-grams, averaged over n = 1 to 4. A text shorter than n words counts as one gram.

    Returns:
        From 1 (all equal) to the number of texts (no word shared).
    """
    n = len(word_lists)
    kernel = sum(_gram_cosines(word_lists, size) for size in range(1, VENDI_GRAMS + 1)) / VENDI_GRAMS
    weights = np.linalg.eigvalsh(kernel / n)
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))


def _gram_cosines(word_lists: Sequence[Sequence[str]], size: int) -> np.ndarray:
    """Cosine between the n-gram counts of every pair of texts, shape (n, n)."""
    grams = [
        [tuple(one[i : i + size]) for i in range(len(one) - size + 1)] or [tuple(one)] for one in word_lists
    ]  # fmt: skip
    columns: dict[tuple[str, ...], int] = {}
    for one in grams:
        for gram in one:
            columns.setdefault(gram, len(columns))
    counts = np.zeros((len(grams), len(columns)))
    for row, one in enumerate(grams):
        np.add.at(counts[row], [columns[gram] for gram in one], 1.0)
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    return counts @ counts.T


def _pairwise(word_lists: Sequence[Sequence[str]], seed: int) -> tuple[float, float | None, float | None]:
    """Near-duplicate rate, mean similarity and effective share of one behavior; the last two not for a single prompt."""
    if len(word_lists) > MAX_PROMPTS_FOR_PAIRS:
        picked = np.random.default_rng(seed).choice(len(word_lists), MAX_PROMPTS_FOR_PAIRS, replace=False)
        word_lists = [word_lists[i] for i in sorted(picked)]
    n = len(word_lists)
    if n < 2:
        return 0.0, None, None
    similar = jaccard_matrix(word_lists)
    earlier = np.tril(similar, k=-1)
    near = float((earlier.max(axis=1) >= NEAR_DUPLICATE).mean())
    return near, float(earlier.sum() / (n * (n - 1) / 2)), vendi_score(word_lists) / n
