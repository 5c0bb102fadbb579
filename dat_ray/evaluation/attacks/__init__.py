"""Attacks, a small module each. What every one of them asks a model does not depend on batch sizes, order or restarts."""

from __future__ import annotations

from dat_ray.evaluation.attacks.questions import OVER_REFUSAL, Behavior, Question, Scope, behaviors_of, held_out, look_alikes

__all__ = [
    "ATTACKS",
    "ATTEMPTS_IN_ORDER",
    "OVER_REFUSAL",
    "Behavior",
    "Question",
    "Scope",
    "behaviors_of",
    "held_out",
    "look_alikes",
]

# What each does, and what it needs of the recipe.
ATTACKS: dict[str, tuple[str, str | None]] = {
    "direct": ("the goal itself, once or sampled", None),
    "prefilling": ("the goal, the model's turn begun with each affirmative target", None),
    "past_tense": ("the goal moved to the past by an attacker model", "evaluation.attacker"),
    "future_tense": ("the goal moved to the future by an attacker model", "evaluation.attacker"),
    "translation": ("the goal in other languages, answers translated back", "evaluation.attacker"),
    "best_of_n": ("the goal with letters shuffled, capitalized and shifted at random", None),
    "templates": ("the goal in a user's own jailbreak templates", "evaluation.templates_path"),
    "pair": ("an attacker model improves its prompt step by step", "evaluation.attacker"),
    "gcg": ("a suffix found by gradients; needs the model's weights", None),
    "embedding": ("a continuous perturbation of the goal's embeddings; needs the model's weights", None),
    "inpainting": ("prompts drawn by the training sampler for the held-out targets", None),
    "inpainting_heldout": ("prompts drawn by another sampler", "evaluation.heldout_sampler"),
}

# Attempts of these follow one another or are of unlike kinds, so "any k of them" means nothing: their curve counts
# the first k. Attempts of the others are exchangeable draws.
ATTEMPTS_IN_ORDER = frozenset({"prefilling", "translation", "templates", "pair", "gcg", "embedding"})
