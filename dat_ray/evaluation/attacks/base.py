"""What an attack is: a class that carries its own facts, and says what it asks of whom.

A new attack is a module of this folder with a subclass of `Attack`; nothing else names it. One of somebody else's is named by
the recipe as `package.module:Class`. The shortest one defines `name`, `title`, `description` and `questions`:

    class Shouting(Attack):
        name, title, description = "shouting", "Shouting", "the goal in capital letters"

        def questions(self) -> list[Question]:
            return [Question(self.name, one.behavior_id, 0, one.goal, one.goal.upper()) for one in self.setup.behaviors]

`dat_ray.evaluation.runner` calls the hooks in this order, each a no-op unless an attack overrides it:

1. `write`: texts of the attacker model that do not depend on the model under attack. Once.
2. `draw`: prompts of a diffusion sampler, which works beside the first model where there is room. Once.
3. `search`: what needs the model's gradients, before the target starts: the same weights lie in memory once. For each model.
4. `ask`: the questions. An attack that goes step by step asks, reads the rows that come back and asks again. For each model.

An attack lives in the driver and keeps what it has learned on itself. What it asks must depend on ids and seeds alone, never on
batch sizes, order or restarts: every text, prompt, search and attempt is stored under its id and not made again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.config.models import SamplerConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import Row
from dat_ray.engines.calls import Answer, Failure
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.questions import AttackerRequest, Behavior, Question, SearchRequest, SeedScope

# What the judges read in place of an answer, for some rows of a shard: (shard's stem, its questions, its rows) -> row number
# -> text, or why there is none.
ReadInstead = Callable[[str, Sequence[Question], Sequence[Row]], Mapping[int, str | Failure]]
# A class of `dat_ray.evaluation.search`, or one like those: made from a `Whitebox` on each worker, it has `advance`.
MakeSearch = Callable[..., Any]


@dataclass(frozen=True)
class Setup:
    """What every attack of a suite knows from the beginning.

    Attributes:
        recipe: resolved.
        scope: what attempt seeds are derived from: the suite's name and the recipe's seed.
        behaviors: the held-out ones, in their order.
        weights: of the recipe's models by field, see `dat_ray.models.identity.check_weights`.
        asked_first: by an attack's name, what it asked the first model: `Attack.remember` fills it in.
    """

    recipe: Recipe
    scope: SeedScope
    behaviors: Sequence[Behavior]
    weights: Mapping[str, str | None]
    asked_first: dict[str, list[Question]] = field(default_factory=dict)

    @classmethod
    def to_count(cls, recipe: Recipe, behaviors: Sequence[Behavior]) -> Setup:
        """For attacks that only say what they will ask for: of a suite of no name, before any model is looked at."""
        return cls(recipe, SeedScope("default", recipe.seed), behaviors, defaultdict(lambda: None))


@dataclass(frozen=True)
class Planned:
    """How many rows an attack will make, at most: what the progress bar and the limits of failed rows count by.

    Attributes:
        asked: attempts on each model.
        drawn: prompts of a sampler, once.
        written: texts of the attacker model, once.
        written_each: texts of the attacker model for each model under attack, which it works beside.
        searched: searches with gradients, for each model.
    """

    asked: int
    drawn: int = 0
    written: int = 0
    written_each: int = 0
    searched: int = 0


class Writer(Protocol):
    """The attacker model."""

    def write(self, stem: str, requests: Sequence[AttackerRequest], max_new_tokens: int | None = None) -> list[Row]:
        """Rows of schema REWRITES, one for each request, in order.

        Args:
            stem: of the shards' names; the same requests under the same name are never asked twice.
            requests: all at one temperature.
            max_new_tokens: of one answer; absent: the attacker's own setting.
        """
        ...


class Drawing(Protocol):
    """Prompts that a sampler is drawing."""

    def rows(self) -> list[Row]:
        """Waits for them: rows of schema CANDIDATES, by shard and order of the requests."""
        ...


class Drawer(Protocol):
    """Diffusion samplers."""

    def draw(self, attack: Attack, config: SamplerConfig, requests: Sequence[Row]) -> Drawing:
        """Starts drawing.

        Args:
            attack: for whom; its `prompts_folder` holds the shards.
            config: of the sampler.
            requests: rows of schema REQUESTS.
        """
        ...


class Session(Writer, Protocol):
    """One model under attack, with all that an attack may use."""

    @property
    def model(self) -> Model:
        """Who is attacked."""
        ...

    def ask(self, questions: Sequence[Question], stem: str | None = None, read_instead: ReadInstead | None = None) -> list[Row]:
        """Lets the model answer and the judges read; rows of schema ATTEMPTS, in the order of the questions.

        Args:
            questions: of one attack, all at one temperature. One without a prompt is an attempt that failed.
            stem: of the shards' names, where an attack asks more than once; absent: MODEL-ATTACK. Later questions may rest on
                what came back, so that a row whose judge could not be asked stays one when the evaluation goes on; without
                a stem the judge is asked again.
            read_instead: gives the text for the judges where it is not the answer itself.
        """
        ...

    def judge(self, answered: Sequence[tuple[Question, Answer]]) -> list[Row]:
        """As `ask`, of answers that the attack itself has brought."""
        ...

    def search(self, attack: str, method: MakeSearch, requests: Sequence[SearchRequest]) -> list[Row]:
        """Searches on workers that hold the model with its gradients; rows of schema SEARCHES, one for each request, in order.

        Args:
            attack: its name.
            method: how to search: a class at the top of a module that the workers can import.
            requests: what to search for.
        """
        ...

    def skip(self, attempts: int, texts: int = 0) -> None:
        """Counts planned attempts and texts that are not needed any more as done."""
        ...


class Attack:
    """One attack of one suite; see the module for its hooks.

    Args:
        setup: of the suite.

    Attributes:
        name: in recipes, rows and file names: lower-case letters, digits and underscores.
        title: its name for people.
        description: what it does, in one line without a full stop.
        needs: dotted fields of the recipe that have to be given, among them every section whose model it asks.
        in_order: whether attempts follow one another or are of unlike kinds. They are not exchangeable then, so pass@k does
            not apply: their curve counts the first k.
        gradients: whether it needs the model's weights.
        access: what JailbreakBench calls it where no gradients are needed: black_box asks the model, transfer brings prompts that
            were made without it, manual those of people.
        has_answers: whether it can bring answers of a model that is not asked, see `Model.answers`.
        prompts_folder: folder below the suite's for the prompts that `draw` has drawn; None for an attack that draws none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    in_order: ClassVar[bool] = False
    gradients: ClassVar[bool] = False
    access: ClassVar[Literal["black_box", "transfer", "manual"]] = "black_box"
    has_answers: ClassVar[bool] = False
    prompts_folder: ClassVar[str | None] = None

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.config = setup.recipe.evaluation

    @classmethod
    def of_recipe(cls, config: EvaluationConfig) -> tuple[type[Attack], ...]:
        """What its entry in a recipe stands for: itself; of an attack that is made of files, a class for each file.

        Raises:
            InputError: the recipe lists no file.
        """
        return (cls,)

    @classmethod
    def inputs(cls, recipe: Recipe) -> dict[str, str]:
        """Files that it reads: dotted field of the recipe -> digest of what is in them. A finished suite is that of its files.

        Raises:
            InputError: one cannot be read.
        """
        return {}

    @classmethod
    def check_goals(cls, recipe: Recipe, goals: Mapping[str, str]) -> None:
        """Looks whether its files serve the behaviors that will be evaluated, before anything is started.

        Args:
            recipe: whose attack it is.
            goals: behavior id -> goal.

        Raises:
            InputError: a file is for other behaviors.
        """

    def questions(self) -> list[Question]:
        """The questions of an attack that knows them in advance."""
        raise NotImplementedError(f"{type(self).__name__} defines neither questions() nor planned() and ask()")

    @cached_property
    def known_questions(self) -> list[Question]:
        """`questions()`, made once: every model is asked the same."""
        return self.questions()

    def planned(self) -> Planned:
        """How much there is to do, as soon as the suite is built.

        Raises:
            InputError: a file that the attack reads is not usable.
        """
        return Planned(len(self.known_questions))

    def write(self, attacker: Writer) -> None:
        """Lets the attacker model write what does not depend on the model under attack."""

    def draw(self, samplers: Drawer) -> None:
        """Lets a sampler draw prompts; returns without waiting for them."""

    def search(self, session: Session) -> None:
        """Searches with the model's gradients, before the target starts."""

    def ask(self, session: Session) -> None:
        """Asks the model."""
        session.ask(self.known_questions)

    def about(self) -> dict[str, int]:
        """What `metrics.json` tells of it besides its attempts, after it has asked."""
        return {}

    def remember(self, questions: Sequence[Question]) -> None:
        """Keeps what was asked of the first model, for `attacks/transfer.py`; of a later model nothing is kept."""
        self.setup.asked_first.setdefault(self.name, list(questions))

    def seed_of(self, behavior: Behavior, index: int | str) -> int:
        """The seed of one attempt, the same for every model."""
        return self.setup.scope.seed_of(self.name, behavior.behavior_id, index)
