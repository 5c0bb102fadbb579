"""A recipe as a run holds it: each hub model at one commit, each judge's prompt as text, so that every node uses the same."""

from __future__ import annotations

from typing import Any, TypeVar

from dat_ray.config.judge_names import library_judge
from dat_ray.config.schema import Recipe
from dat_ray.config.section import Section
from dat_ray.engines.model_judge import read_prompt
from dat_ray.engines.zoo_judge import require_library
from dat_ray.models.identity import pinned_revision, recorded_weights

# Sections of a recipe that describe judges.
JUDGES = ("judge", "evaluation.second_judge", "evaluation.refusal_judge")

Settings = TypeVar("Settings", bound=Section)


def pinned(recipe: Recipe, folder: str, *sections: str) -> Recipe:
    """The recipe of a run with commits in place of branches and prompts in place of their files; its rows are the same.

    Args:
        recipe: a run's.
        folder: whose `weights.json` says at which commits the run began; what it does not say is asked of the hub.
        sections: dotted sections of the models and judges that will be used; nothing of the others is read.

    Raises:
        InputError: a prompt that cannot be read, or a damaged record.
    """
    recorded = recorded_weights(folder)
    for section, (config, _) in recipe.engines().items():
        if config.backend != "endpoint" and _within(section, sections):
            field = f"{section}.model"
            recipe = _with(recipe, f"{section}.revision", pinned_revision(config, recorded.get(field), field))
    if recipe.encoder is not None and _within("encoder", sections):
        kept = pinned_revision(recipe.encoder, recorded.get("encoder.model"), "encoder.model")
        recipe = _with(recipe, "encoder.revision", kept)
    for field, text in prompts_of(recipe, *(judge for judge in JUDGES if _within(judge, sections))).items():
        recipe = _with(_with(recipe, f"{field}_path", None), field, text)
    return recipe


def prompts_of(recipe: Recipe, *sections: str) -> dict[str, str]:
    """Dotted field -> prompt of those of the named judges that ask a model with one.

    Raises:
        InputError: a prompt that cannot be read, or lacks a slot; a judge whose library is not installed.
    """
    found = {}
    for section in sections:
        judge: Any = recipe
        for name in section.split("."):
            judge = None if judge is None else getattr(judge, name)
        if judge is not None and library_judge(judge.name):
            # Said before anything is started, rather than by the judge's own process.
            require_library(f"{section}.name", judge.name)
        if judge is not None and judge.asks_with_prompt:
            found[f"{section}.prompt"] = read_prompt(judge, section)
    return found


def _within(section: str, sections: tuple[str, ...]) -> bool:
    return any(section == one or section.startswith(f"{one}.") for one in sections)


def _with(section: Settings, path: str, value: object) -> Settings:
    """A copy in which one field has another value."""
    name, _, rest = path.partition(".")
    return section.model_copy(update={name: _with(getattr(section, name), rest, value) if rest else value})
