"""Best-of-N (arXiv 2412.03556): the goal with its letters disturbed at random, many times over.

The published perturbation of strength sigma, in its published order: the inner letters of each word of more than three
are shuffled with probability sigma^(1/2); each letter changes its case with probability sigma^(1/2); each printable
character moves to the next or the previous ASCII code with probability sigma^3, where that is printable too.
"""

from __future__ import annotations

import random

from dat_ray.evaluation.attacks.base import Attack
from dat_ray.evaluation.questions import Question

FIRST_PRINTABLE, LAST_PRINTABLE = 32, 126


class BestOfN(Attack):
    """`best_of_n.samples` disturbed goals of each behavior, one answer each."""

    name = "best_of_n"
    title = "Best-of-N"
    description = "the goal with letters shuffled, capitalized and shifted at random"

    def questions(self) -> list[Question]:
        config = self.config.best_of_n
        found = []
        for one in self.setup.behaviors:
            for index in range(config.samples):
                seed = self.seed_of(one, index)
                prompt = disturb(one.goal, config.sigma, random.Random(seed))
                answer_seed = seed if config.temperature else None
                found.append(
                    Question(
                        self.name, one.behavior_id, index, one.goal, prompt, temperature=config.temperature, seed=answer_seed
                    )
                )
        return found


def disturb(text: str, sigma: float, rng: random.Random) -> str:
    """All three perturbations; white space becomes single spaces."""
    often, rarely = sigma**0.5, sigma**3
    text = " ".join(_scramble(word, rng) if len(word) > 3 and rng.random() < often else word for word in text.split())
    text = "".join(_swap_case(c) if c.isalpha() and rng.random() < often else c for c in text)
    return "".join(_shift(c, rng) if c.isprintable() and rng.random() < rarely else c for c in text)


def _scramble(word: str, rng: random.Random) -> str:
    inner = list(word[1:-1])
    rng.shuffle(inner)
    return word[0] + "".join(inner) + word[-1]


def _swap_case(character: str) -> str:
    # Of letters beyond ASCII the published code keeps none of the lower-case ones; we leave them as they are.
    return character.swapcase() if character.isascii() else character


def _shift(character: str, rng: random.Random) -> str:
    code = ord(character) + rng.choice((-1, 1))
    return chr(code) if FIRST_PRINTABLE <= code <= LAST_PRINTABLE else character
