"""Every engine of a recipe looked at as before a run, and a tiny double made of its model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dat_ray.config.models import SamplerConfig
from dat_ray.config.schema import Recipe
from dat_ray.engines.checks import check_engine
from dat_ray.models.hub import OutOfReach
from dat_ray.models.served import ModelSource, find_source
from dat_ray.pipeline.stages import check_target
from dat_ray.rehearsal.shrink import LAYERS, Wanted, tiny_model
from dat_ray.rehearsal.stand_ins import TOKENIZER, family_of, stand_in


@dataclass(frozen=True)
class Double:
    """What an engine is rehearsed with.

    Attributes:
        section: of the recipe.
        model: that the recipe names.
        folder: of the tiny model; None for a server, which is asked as it is.
        detail: what is known of the model, or why another one stands in its place.
        stands_in: whether tokenizer and template are another model's.
    """

    section: str
    model: str
    folder: str | None
    detail: str
    stands_in: bool = False


def make_doubles(recipe: Recipe) -> Iterator[Double]:
    """Looks at each model of a recipe and makes its double.

    Args:
        recipe: of `dat_ray.rehearsal.overlay.rehearsed`, with the models of the real run.

    Raises:
        InputError: what an engine would fail on, named by its field; or a model out of reach of whose family nothing is known.
    """
    for section, (config, _) in recipe.engines().items():
        if config.backend == "endpoint":
            yield Double(section, config.model, None, "a server, asked as it is")
            continue
        field = f"{section}.model"
        wanted = Wanted(isinstance(config, SamplerConfig), _layers(recipe) if section == "target" else LAYERS)
        try:
            if section == "target":
                check_target(recipe)
            detail = check_engine(section, config).detail
            source, stands_in = find_source(config.model, field, config.revision, weights=False), False
        except OutOfReach as error:
            options = () if isinstance(config, SamplerConfig) else tuple(config.template_options)
            source, detail = _stand_in(config.model, error, options)
            stands_in = True
        yield Double(section, config.model, tiny_model(source, wanted, field), detail, stands_in)


def _stand_in(model: str, error: OutOfReach, options: tuple[str, ...]) -> tuple[ModelSource, str]:
    public = family_of(model)
    if public is None:
        raise error
    reason = error.remedy.partition(":")[0]
    return stand_in(model, public, options), f"{reason}; {public.name}'s shape with the tokenizer of {TOKENIZER}"


def _layers(recipe: Recipe) -> int:
    """The fewest layers of a target: the attack of a training may name some of them by number."""
    named = [layer for layer in recipe.training.attack.layers if layer != "embedding"]
    return max([LAYERS, *(int(layer) + 1 for layer in named)])
