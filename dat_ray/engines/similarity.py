"""How near in meaning two texts are, by any encoder; numpy alone, so that an actor's module brings no torch along."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dat_ray.engines.base import TextEncoder


def similarities(encoder: TextEncoder, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The cosine of each pair of texts, in [-1, 1]; each distinct text is encoded once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    place = {text: number for number, text in enumerate(texts)}
    vectors = encoder.encode(texts)
    return [float(np.clip(vectors[place[a]] @ vectors[place[b]], -1.0, 1.0)) for a, b in pairs]
