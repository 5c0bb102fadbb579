"""When two texts count as the same, and when one holds the other.

One rule for all scripts: a text is a row of units. In a script that puts spaces between words a unit is a word; in one that
does not (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) it is a character with its marks, since a whole clause would
count as a single word otherwise.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

# Typewriter, left and right single quotation mark, modifier letter, grave and acute accent as typed by people.
_APOSTROPHES = frozenset("'\u2018\u2019\u02bc`\u00b4")


# Letters of scripts that are written without spaces: Thai, Lao, Tibetan, Burmese, Khmer, Japanese kana, Han.
_UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ecf\u0edc-\u0edf\u0f40-\u0fbc\u1000-\u103f\u1050-\u109f\u1780-\u17d3"
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U000323af"
)
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")


def normalize(text: str) -> str:
    """Lower-cased units with single spaces between them.

    Apostrophes vanish ("don't" becomes "dont"), every other character that is not a letter, a mark or
    a digit becomes a space, after Unicode NFKC. Characters of a script without spaces stand apart.
    """
    # The spacing acute accent decomposes under NFKC, so apostrophes go first and once more after it. What becomes small, or loses
    # an apostrophe, may compose with the mark behind it.
    bare = "".join(char for char in text if char not in _APOSTROPHES)
    folded = unicodedata.normalize("NFKC", bare).lower()
    kept = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in folded if char not in _APOSTROPHES)
    return " ".join(split_unspaced(unicodedata.normalize("NFKC", kept)))


def split_unspaced(text: str) -> list[str]:
    """Splits a text at spaces, and around each character of a script without spaces; marks stay with their letter."""
    if _UNSPACED_LETTER.search(text) is None:
        return text.split()
    spaced: list[str] = []
    apart = False
    for char in text:
        if unicodedata.category(char)[0] == "M":
            spaced.append(char)
            continue
        unspaced = _UNSPACED_LETTER.match(char) is not None
        spaced.append(f" {char}" if unspaced or apart else char)
        apart = unspaced
    return "".join(spaced).split()


def features(units: Sequence[str]) -> frozenset[str]:
    """What two texts are compared by: words, and pairs of neighboring characters in a script without spaces.

    A character with no such neighbor stands for itself.
    """
    if not any(_UNSPACED_LETTER.match(unit) for unit in units):
        return frozenset(units)
    compared: set[str] = set()
    run: list[str] = []
    for unit in (*units, ""):
        if unit and _UNSPACED_LETTER.match(unit):
            run.append(unit)
            continue
        compared.update(map("".join, pairwise(run)) if len(run) > 1 else run)
        run = []
        if unit:
            compared.add(unit)
    return frozenset(compared)


def tokens(text: str) -> frozenset[str]:
    """The `features` of the normalized text."""
    return features(normalize(text).split())


def holds(text: str, part: str) -> bool:
    """Whether all units of ``part`` stand in ``text`` side by side; case, punctuation and spacing don't count.

    A part without a letter or digit is held by no text.
    """
    units = normalize(part)
    return bool(units) and f" {units} " in f" {normalize(text)} "


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
