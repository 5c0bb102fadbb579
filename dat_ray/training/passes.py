"""How many tokens go through a model in one update: pure counts, for rows that are there and for rows that are planned.

P parameters of the decoder without its embeddings and head. A token costs 2 P operations forward and, since the base
weights are frozen, 2 P backward (gradients of activations; an adapter's own are small beside them). Attention's part,
about 1 % at 128 tokens and width 4096, is left out, and so is what activation checkpointing computes again: utilization
counts useful operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dat_ray.config.training import TrainingConfig


@dataclass(frozen=True)
class UpdateTokens:
    """Tokens of one update's rows, each row counted once.

    Attributes:
        harmful, harmful_head: of prompts with their harmful responses, and of these responses alone.
        refusal, refusal_head: the same of prompts with refusals.
        retain, retain_head: the same of retain rows.
    """

    harmful: int
    harmful_head: int
    refusal: int
    refusal_head: int
    retain: int
    retain_head: int


@dataclass(frozen=True)
class Passes:
    """Tokens through the decoder and response tokens through the head, one forward pass each.

    Attributes:
        forward: decoder tokens forward.
        backward: decoder tokens backward.
        head_forward: head rows forward.
        head_backward: head rows backward.
    """

    forward: int
    backward: int
    head_forward: int
    head_backward: int

    def flops(self, decoder_parameters: int, head_parameters: int) -> float:
        """Floating-point operations."""
        return 2.0 * decoder_parameters * (self.forward + self.backward) + 2.0 * head_parameters * (
            self.head_forward + self.head_backward
        )


def count_passes(tokens: UpdateTokens, cfg: TrainingConfig) -> Passes:
    """What one update runs for rows of these sizes."""
    y, y_head = tokens.harmful, tokens.harmful_head
    pair, pair_head = y + tokens.refusal, y_head + tokens.refusal_head
    kept, kept_head = (tokens.retain, tokens.retain_head) if cfg.retain_weight else (0, 0)
    attacked, attacked_head = (pair, pair_head) if cfg.attack.objective == "joint" else (y, y_head)
    attack, last = cfg.attack.steps, int(cfg.attack.iterate == "best")
    steps = cfg.steps_per_attack
    reference, teacher = int(cfg.away == "ipo"), int(cfg.retain_loss != "ce")
    return Passes(
        forward=(attack + last) * attacked + steps * ((1 + reference) * pair + (1 + teacher) * kept),
        backward=attack * attacked + steps * (pair + kept),
        head_forward=(attack + last) * attacked_head + steps * ((1 + reference) * pair_head + (1 + teacher) * kept_head),
        head_backward=attack * attacked_head + steps * (pair_head + kept_head),
    )


def count_updates(cfg: TrainingConfig, harmful: int) -> int:
    """Updates of the whole training: `updates` where the recipe gives them, else `epochs` over the harmful rows."""
    return cfg.updates or math.ceil(cfg.epochs * harmful / cfg.harmful_rows)
