"""When two requests count as the same: normalized text and token-set Jaccard similarity."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

# Typewriter, left and right single quotation mark, modifier letter, grave and acute accent as typed by people.
_APOSTROPHES = frozenset("'\u2018\u2019\u02bc`\u00b4")


def normalize(text: str) -> str:
    """Lower-cased words with single spaces between them.

    Apostrophes vanish ("don't" becomes "dont"), every other character that is not a letter, a mark or
    a digit becomes a space, after Unicode NFKC.
    """
    # The spacing acute accent decomposes under NFKC, so apostrophes go first and once more after it.
    bare = "".join(char for char in text if char not in _APOSTROPHES)
    folded = unicodedata.normalize("NFKC", bare).lower()
    kept = (char if unicodedata.category(char)[0] in "LMN" else " " for char in folded if char not in _APOSTROPHES)
    return " ".join("".join(kept).split())


def tokens(text: str) -> frozenset[str]:
    """The set of words of the normalized text."""
    return frozenset(normalize(text).split())


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a and b| / |a or b|; 1 for two empty sets, since both texts then normalize to nothing."""
    if not a and not b:
        return 1.0
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def near_duplicates(a: Sequence[str], b: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """All pairs (i, j, similarity) with token-set Jaccard of ``a[i]`` and ``b[j]`` at least ``threshold``.

    Texts that are equal once normalized have similarity 1. Pairs come in order of i, then j.

    Prefix filtering: with words ordered from rare to common, two sets of Jaccard t or more share one of
    their first ``n - ceil(t n) + 1`` words (n: size of the set), so common words are hardly ever looked up.

    Args:
        a: texts.
        b: texts; may be ``a`` itself, then every text pairs with itself too.
        threshold: in [0, 1].
    """
    left, right = [tokens(text) for text in a], [tokens(text) for text in b]
    if threshold <= 0:
        return [(i, j, jaccard(x, y)) for i, x in enumerate(left) for j, y in enumerate(right)]
    frequency = Counter(word for words in (*left, *right) for word in words)

    def prefix(words: frozenset[str]) -> list[str]:
        ordered = sorted(words, key=lambda word: (frequency[word], word))
        # The margin keeps a product such as 0.7 * 10 from being rounded up past its whole number.
        return ordered[: len(words) - math.ceil(threshold * len(words) - 1e-9) + 1]

    postings: defaultdict[str, list[int]] = defaultdict(list)
    for j, words in enumerate(right):
        for word in prefix(words):
            postings[word].append(j)
    empty = [j for j, words in enumerate(right) if not words]
    found = []
    for i, words in enumerate(left):
        near = set(empty) if not words else {j for word in prefix(words) for j in postings.get(word, ())}
        for j in sorted(near):
            similarity = jaccard(words, right[j])
            if similarity >= threshold:
                found.append((i, j, similarity))
    return found
