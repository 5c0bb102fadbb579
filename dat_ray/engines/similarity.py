"""How near in meaning texts are, by any encoder; numpy alone, so that an actor's module brings no torch along."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dat_ray.engines.base import TextEncoder

Vectors = NDArray[np.float32]


def encode_each(encoder: TextEncoder, texts: Sequence[str]) -> Vectors:
    """Unit vectors (N, D), one for each text; each distinct text is encoded once."""
    distinct = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(distinct)}
    return encoder.encode(distinct)[[place[text] for text in texts]]


def similarities(first: Vectors, second: Vectors) -> list[float]:
    """The cosine of each pair of unit vectors, (N, D) and (N, D), in [-1, 1]."""
    return [float(value) for value in np.clip(np.einsum("nd,nd->n", first, second), -1.0, 1.0)]


def nearest(vectors: Vectors, others: Vectors) -> list[float]:
    """The largest cosine of each unit vector, (N, D), with any of the others, (M, D) with M at least 1."""
    return [float(value) for value in np.clip((vectors @ others.T).max(axis=1), -1.0, 1.0)]
