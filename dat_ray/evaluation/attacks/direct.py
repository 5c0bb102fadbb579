"""The goal itself, and the goal with the model's turn already begun."""

from __future__ import annotations

from dat_ray.evaluation.attacks.base import Attack
from dat_ray.evaluation.questions import Question


class Direct(Attack):
    """The goal as the prompt: once greedily, or sampled `direct.samples` times."""

    name = "direct"
    title = "Direct request"
    description = "the goal itself, once or sampled"

    def questions(self) -> list[Question]:
        config = self.config.direct
        return [
            Question(
                self.name,
                one.behavior_id,
                index,
                one.goal,
                one.goal,
                temperature=config.temperature,
                seed=self.seed_of(one, index) if config.temperature else None,
            )
            for one in self.setup.behaviors
            for index in range(config.samples)
        ]


class Prefilling(Attack):
    """The goal, with the model's turn begun with each of the behavior's affirmative targets (arXiv 2404.02151).

    The answer is what the model says after it: judges don't read the beginning, which is not the model's own.
    """

    name = "prefilling"
    title = "Prefilling"
    description = "the goal, the model's turn begun with each affirmative target"
    in_order = True

    def questions(self) -> list[Question]:
        return [
            Question(self.name, one.behavior_id, index, one.goal, one.goal, prefill=target)
            for one in self.setup.behaviors
            for index, (_, target) in enumerate(one.targets)
        ]
