"""Ready prompts: an attack that is a file. Each file of `evaluation.prompts` is an attack of its own, `prompts_NAME`.

One attack a file, since files come from unlike attacks: pooled, a weak one would pass for a strong one. The file's name is part
of the attack's from the first file on, so that a second file renames nothing that is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from dat_ray.config.evaluation import READY_PREFIX, EvaluationConfig, PromptFile
from dat_ray.config.schema import Recipe
from dat_ray.data.prompt_files import MatchedPrompts, PromptRow, PromptSet, draw, match_prompts, read_prompts
from dat_ray.engines.calls import Answer
from dat_ray.errors import InputError
from dat_ray.evaluation.attacks.base import Attack, Planned, Session
from dat_ray.evaluation.questions import Question
from dat_ray.progress import stage_line

FIELD = "evaluation.prompts"


class Prompts(Attack):
    """The prompts of one file, as they are, each asked once and greedily.

    A model whose answers the files hold (`Model.answers`) is not asked: its stored completions go to the judges.

    Attributes:
        number: which entry of `evaluation.prompts` it is.
    """

    name = "prompts"
    title = "Ready prompts"
    description = "prompts of a file, such as a published artifact, test cases, or a table; an attack a file"
    needs = (FIELD,)
    in_order = True
    access = "transfer"
    has_answers = True
    number: ClassVar[int] = 0

    @classmethod
    def of_recipe(cls, config: EvaluationConfig) -> tuple[type[Attack], ...]:
        if not config.prompts:
            raise InputError("evaluation.attacks", cls.name, f"needs {FIELD}: give it, or leave the attack out")
        return tuple(
            type(
                cls.__name__,
                (cls,),
                {
                    "name": file.attack,
                    "title": f"Prompts of {file.attack.removeprefix(READY_PREFIX)}",
                    "description": f"the prompts of {file.path}",
                    "number": number,
                    "__module__": cls.__module__,
                    "__doc__": cls.__doc__,
                },
            )
            for number, file in enumerate(config.prompts)
        )

    @classmethod
    def inputs(cls, recipe: Recipe) -> dict[str, str]:
        return {f"{FIELD}.{cls.number}.path": _read(recipe.evaluation, cls.number).digest}

    @classmethod
    def check_goals(cls, recipe: Recipe, goals: Mapping[str, str]) -> None:
        found = match_prompts(_read(recipe.evaluation, cls.number), goals)
        if not found.by_behavior:
            path = recipe.evaluation.prompts[cls.number].path
            remedy = f"holds no prompt for the behaviors that are evaluated ({found}): evaluate on those that it is for"
            raise InputError(f"{FIELD}.{cls.number}.path", path, remedy)

    @property
    def file(self) -> PromptFile:
        """The entry of `evaluation.prompts`."""
        return self.config.prompts[self.number]

    @cached_property
    def matched(self) -> MatchedPrompts:
        """The file's rows by behavior, after `samples` of them were drawn."""
        self.check_goals(self.setup.recipe, self._goals)
        found = match_prompts(_read(self.config, self.number), self._goals)
        stage_line(f"{self.name}: {found}")
        return found

    @cached_property
    def drawn(self) -> dict[str, list[PromptRow]]:
        """Behavior id -> rows to use."""
        samples, seed = self.file.samples, self.setup.recipe.seed
        return {key: draw(rows, samples, seed) for key, rows in self.matched.by_behavior.items()}

    def questions(self) -> list[Question]:
        found = []
        for behavior, rows in self.drawn.items():
            # Greedy answers to one prompt are the same: where a file has several completions of it, it is asked once.
            unlike = dict.fromkeys((row.prompt, row.variant) for row in rows)
            found += [self._question(behavior, index, *one) for index, one in enumerate(unlike)]
        return found

    def answered(self) -> list[tuple[Question, Answer]]:
        """The file's own completions."""
        return [
            (self._question(behavior, index, row.prompt, row.variant), Answer(row.completion, 0.0))
            for behavior, rows in self.drawn.items()
            for index, row in enumerate(row for row in rows if row.completion is not None)
        ]

    def planned(self) -> Planned:
        return Planned(max(len(self.known_questions), len(self.answered())))

    def ask(self, session: Session) -> None:
        answers = session.model.answers
        if answers is None:
            completions = sum(row.completion is not None for rows in self.drawn.values() for row in rows)
            if completions:
                option = f"--models NAME=completions:{self.name.removeprefix(READY_PREFIX)}"
                stage_line(f"{self.name}: {session.model.name} is asked; the file's {completions} completions: {option}")
            session.ask(self.known_questions)
            session.skip(self.planned().asked - len(self.known_questions))
        else:
            found = self.answered() if self.name in answers else []
            session.judge(found)
            session.skip(self.planned().asked - len(found))

    def about(self) -> dict[str, int]:
        return self.matched.counts()

    def _question(self, behavior_id: str, index: int, prompt: str, variant: str | None) -> Question:
        return Question(self.name, behavior_id, index, self._goals[behavior_id], prompt, variant=variant)

    @cached_property
    def _goals(self) -> dict[str, str]:
        return {one.behavior_id: one.goal for one in self.setup.behaviors}


def _read(config: EvaluationConfig, number: int) -> PromptSet:
    return read_prompts(config.prompts[number], f"{FIELD}.{number}")
