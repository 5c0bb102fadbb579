"""The goal itself, and the goal with the model's turn already begun."""

from __future__ import annotations

from collections.abc import Iterable

from dat_ray.config.evaluation import DirectConfig
from dat_ray.evaluation.attacks.questions import Behavior, Question, Scope


def direct(behaviors: Iterable[Behavior], config: DirectConfig, scope: Scope) -> list[Question]:
    """The goal as the prompt: once greedily, or sampled `config.samples` times."""
    return [
        Question(
            "direct",
            one.behavior_id,
            index,
            one.goal,
            one.goal,
            temperature=config.temperature,
            seed=scope.seed_of("direct", one.behavior_id, index) if config.temperature else None,
        )
        for one in behaviors
        for index in range(config.samples)
    ]


def prefilling(behaviors: Iterable[Behavior]) -> list[Question]:
    """The goal, with the model's turn begun with each of the behavior's affirmative targets (arXiv 2404.02151).

    The answer is what the model says after it: judges don't read the beginning, which is not the model's own.
    """
    return [
        Question("prefilling", one.behavior_id, index, one.goal, one.goal, prefill=target)
        for one in behaviors
        for index, (_, target) in enumerate(one.targets)
    ]
