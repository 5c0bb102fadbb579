"""The file of a study: which recipes are compared, over which training seeds, on which suites. No torch, no ray."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from dat_ray.config.front_section import FRONTS, FrontsConfig
from dat_ray.config.loading import fingerprint, load_recipe, load_settings, recipe_text
from dat_ray.config.names import Name
from dat_ray.config.schema import Recipe
from dat_ray.config.section import NonNegative, PathText, Section, leaves
from dat_ray.errors import InputError

# What candidates are made from: arms of one seed in which these agree share them.
CANDIDATES = ("seed", "behaviors", "sampler", "target", "judge", "generation", "encoder")
# What an evaluation reads of a recipe; it is made once for all arms, so that they have to agree in it.
ASKED = ("target", "judge", "encoder", "evaluation")
HELD_OUT = ("behaviors.heldout", "behaviors.over_refusal", "behaviors.harmless_heldout")
# Parts of the names of models in an evaluation, which become ARM@SEED, and of folders.
_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*")
BASE = "base"
# Of the package, with the studies that come with it.
FOLDER = "studies"


def _arm_name(text: str) -> str:
    if not _ARM.fullmatch(text) or text == BASE:
        raise ValueError(f"an arm's name is made of letters, digits, dots and underscores, and is not {BASE!r}")
    return text


ArmName = Annotated[str, AfterValidator(_arm_name)]


class ArmConfig(Section):
    """One way of training: settings over the study's own."""

    recipe: PathText | None = Field(None, description="recipe of this arm alone; absent: the study's")
    about: str = Field("", description="what the arm is, in a few words")
    settings: dict[str, Any] = Field({}, description="sections and fields of a recipe, as in {selection: {source: goals}}")


class StudyConfig(Section):
    """A comparison of ways of training: arms by seeds, all evaluated by the same suites."""

    NOUN = "study"
    EXAMPLE = "docs/evaluation.md has one"
    name: Name
    question: str = Field("", description="what the study is to answer")
    recipe: PathText = Field("demo", description="a name of `dat recipes`, or a YAML file, that the arms change")
    settings: dict[str, Any] = Field({}, description="sections and fields of a recipe, for all arms and suites")
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = Field(
        (1, 2, 3), description="`seed` of each run of an arm: draws, order of the rows and the adapter's first weights"
    )
    arms: Annotated[dict[ArmName, ArmConfig], Field(min_length=1)]
    reference: str | None = Field(None, description="the arm that the others are compared with; absent: the first")
    primary: str = Field(
        "boa",
        description="measure on which the conclusion rests: boa, over_refusal, an attack, or attack/variant; the others "
        "are corrected for their number apart",
    )
    suites: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)] = Field(
        {"heldout": {}}, description="name of an evaluation to settings of the section `evaluation` for it"
    )
    fronts: FrontsConfig | None = Field(
        None, description="evaluate adapters along each training, so that arms are compared at one over-refusal; absent: none"
    )
    parallel: Annotated[int, Field(gt=0)] = Field(
        1, description="runs at the same time; each asks for all pools, and its driver runs on the node of the study's own"
    )


@dataclass(frozen=True)
class StudyRun:
    """One training: an arm under a seed.

    Attributes:
        arm: its name.
        seed: of the recipe.
        recipe: resolved.
    """

    arm: str
    seed: int
    recipe: Recipe

    @property
    def model(self) -> str:
        """Its name in an evaluation."""
        return f"{self.arm}@{self.seed}"

    def after(self, updates: int) -> str:
        """The name of its adapter after so many updates."""
        return f"{self.model}u{updates}"


@dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
        config: as the file has it.
        reference: name of the arm that the others are compared with.
        runs: arm by arm, seed by seed; of a part of a study those of the part alone.
        suites: name to the recipe by which the models are evaluated: the reference's under the first seed of the whole study.
        front: the same for adapters along the trainings; None where these are not evaluated.
    """

    config: StudyConfig
    reference: str
    runs: list[StudyRun]
    suites: dict[str, Recipe]
    front: Recipe | None = None

    @property
    def front_suites(self) -> dict[str, Recipe]:
        """As `suites`, the one of adapters along the trainings; empty where these are not evaluated."""
        return {} if self.front is None else {FRONTS: self.front}

    @property
    def run_marks(self) -> dict[str, str]:
        """The fingerprint of each run's recipe, by its model's name."""
        return {run.model: fingerprint(run.recipe) for run in self.runs}

    @property
    def suite_marks(self) -> dict[str, str]:
        """The same of all suites by name, that of adapters along the trainings among them."""
        return {name: fingerprint(recipe) for name, recipe in (self.suites | self.front_suites).items()}

    @property
    def is_whole(self) -> bool:
        """Whether every arm is here under every seed."""
        return len(self.runs) == len(self.config.arms) * len(self.config.seeds)

    def alone(self) -> Study:
        """The study as if its runs were all: what compares them asks for no others.

        Raises:
            InputError: its arms have other seeds each, or the reference is none of them.
        """
        by_arm: dict[str, list[int]] = {}
        for run in self.runs:
            by_arm.setdefault(run.arm, []).append(run.seed)
        if self.reference not in by_arm:
            remedy = "arms are compared with it: take some of its runs too"
            raise InputError("--only", self.reference, f"is the reference, and no run of it is here: {remedy}")
        seeds = by_arm[self.reference]
        for arm, own in by_arm.items():
            if own != seeds:
                told = f"has seeds {', '.join(map(str, own))}, and {self.reference} {', '.join(map(str, seeds))}"
                raise InputError("--only", arm, f"{told}: take runs of the same seeds of each")
        arms = {name: self.config.arms[name] for name in by_arm}
        return replace(self, config=self.config.model_copy(update={"arms": arms, "seeds": tuple(seeds)}))

    def part(self, patterns: Iterable[str]) -> Study:
        """The same study with some of its runs: it draws, asks and judges as the whole does.

        Args:
            patterns: names of runs, ARM@SEED, in which `*` stands for anything.

        Raises:
            InputError: a pattern is the name of no run.
        """
        wanted: set[str] = set()
        for pattern in patterns:
            found = {run.model for run in self.runs if fnmatchcase(run.model, pattern)}
            if not found:
                names = ", ".join(run.model for run in self.runs)
                raise InputError("--only", pattern, f"is no run of this study (ARM@SEED): choose of {names}")
            wanted |= found
        return replace(self, runs=[run for run in self.runs if run.model in wanted])


def read_study(name_or_path: str, settings: list[str]) -> Study:
    """Reads a study and resolves the recipe of each of its runs.

    Args:
        name_or_path: of a study that comes with the package, or a YAML file.
        settings: `a.b=value` over the file's fields, as in `seeds=[1]` or `settings.training.updates=4`.

    Raises:
        InputError: a field that is no field, a value that cannot be, arms that are the same run, or that would be asked or judged
            differently.
    """
    config = load_settings(StudyConfig, recipe_text(name_or_path, FOLDER), name_or_path, settings, exponents=True)
    _unlike("seeds", config.seeds)
    names = list(config.arms)
    reference = names[0] if config.reference is None else config.reference
    if reference not in config.arms:
        raise InputError("reference", reference, f"is no arm: choose one of {', '.join(names)}")
    runs = [StudyRun(arm, seed, _recipe(config, arm, seed)) for arm in names for seed in config.seeds]
    _comparable(runs, reference)
    suites = {name: _suite(config, reference, name) for name in config.suites}
    return Study(config, reference, runs, suites, _front(config, reference))


def _suite(config: StudyConfig, reference: str, name: str) -> Recipe:
    where = f"suites.{name}"
    return _recipe(config, reference, config.seeds[0], where, _flat(config.suites[name], where, "evaluation."))


def _front(config: StudyConfig, reference: str) -> Recipe | None:
    fronts = config.fronts
    if fronts is None:
        return None
    if FRONTS in config.suites:
        raise InputError(f"suites.{FRONTS}", FRONTS, "is the name of the suite of `fronts`: give it another")
    settings = [*_flat(fronts.evaluation(), f"{FRONTS}.settings", "evaluation."), "behaviors.harmless_heldout=null"]
    settings += [] if fronts.backend is None else [f"target.backend={fronts.backend}"]
    recipe = _recipe(config, reference, config.seeds[0], FRONTS, settings)
    if recipe.evaluation.gap is not None:
        # Of a run and what it was trained on, not of what it was on its way.
        raise InputError(f"{FRONTS}.settings", "gap", "is not measured of adapters along a training: give it to a suite")
    if recipe.behaviors.over_refusal is None:
        raise InputError(
            FRONTS, fronts.over_refusal, "needs look-alikes: give behaviors.over_refusal in `settings`, or leave it out"
        )
    return recipe


def trained_by(model: str) -> str:
    """The name of the run that made a model of `StudyRun.model` or `StudyRun.after`."""
    arm, _, seed = model.partition("@")
    return f"{arm}@{seed.partition('u')[0]}"


def candidates_mark(recipe: Recipe) -> str:
    """16 hex digits of what a run's candidates are made from."""
    return fingerprint(recipe, CANDIDATES)


def retain_mark(recipe: Recipe) -> str | None:
    """16 hex digits of what a run's retain set is made from; None where there is none, or some of it is the run's own."""
    retain = recipe.training.retain
    if retain is None or retain.inpainted_share:
        return None
    return fingerprint(recipe.target)[:8] + fingerprint(retain)[:8]


def _unlike(field: str, values: tuple[Any, ...]) -> None:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise InputError(field, list(values), f"names {twice[0]!r} twice")


def _recipe(config: StudyConfig, arm: str, seed: int, where: str | None = None, more: Iterable[str] = ()) -> Recipe:
    """The recipe of an arm under a seed; with more settings, from `where`, the one of a suite."""
    own = config.arms[arm]
    settings = [*_flat(config.settings, "settings"), *_flat(own.settings, f"arms.{arm}.settings"), *more]
    where = where or f"arms.{arm}"
    settings += [f"seed={seed}", f"name={json.dumps(config.name)}"]
    settings += [] if config.fronts is None else [f"training.keep_every={config.fronts.every}"]
    try:
        return load_recipe(own.recipe or config.recipe, settings)
    except InputError as error:
        raise InputError(f"{where}: {error.field}", error.value, error.remedy) from None


def _flat(tree: Mapping[str, Any], field: str, prefix: str = "") -> Iterator[str]:
    """`a.b=value` of every value that is no mapping."""
    for name, value in tree.items():
        if prefix == "" and name in ("seed", "name"):
            raise InputError(f"{field}.{name}", value, f"is the study's own: set `{'seeds' if name == 'seed' else 'name'}`")
        if isinstance(value, Mapping) and value:
            yield from _flat(value, field, f"{prefix}{name}.")
            continue
        try:
            yield f"{prefix}{name}={json.dumps(value)}"
        except TypeError:  # a date, which no field takes
            raise InputError(f"{field}.{prefix}{name}", str(value), "is no text, number, list or mapping: quote it") from None


def _comparable(runs: list[StudyRun], reference: str) -> None:
    """Refuses arms that are the same, or that one evaluation could not ask and judge alike."""
    seen: dict[str, StudyRun] = {}
    for run in runs:
        same = seen.setdefault(fingerprint(run.recipe), run)
        if same is not run:
            raise InputError(f"arms.{run.arm}", run.arm, f"is the same run as {same.arm}: change a field that changes rows")
    first = next(run.recipe for run in runs if run.arm == reference)
    wanted = _asked(first)
    for run in runs:
        own = _asked(run.recipe)
        for field in sorted(own.keys() | wanted.keys()):
            if own.get(field) != wanted.get(field):
                other = f"is {wanted.get(field)!r} in {reference}"
                remedy = f"{other}; all arms are asked and judged alike: set it in `settings`"
                raise InputError(f"arms.{run.arm}: {field}", own.get(field), remedy)


def _asked(recipe: Recipe) -> dict[str, Any]:
    def counts(path: str) -> bool:
        return path.split(".")[0] in ASKED or any(path == part or path.startswith(f"{part}.") for part in HELD_OUT)

    return {path: leaf.value for path, leaf in leaves(recipe) if leaf.changes_rows and counts(path)}
