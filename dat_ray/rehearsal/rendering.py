"""One rendered prompt for each engine of a rehearsal, with a harmless request in the place of a behavior's goal."""

from __future__ import annotations

from collections.abc import Iterator

from dat_ray.config.models import JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.judge_prompts import fill
from dat_ray.engines.model_judge import read_prompt
from dat_ray.engines.sampler_setup import SamplerSetup
from dat_ray.engines.target_text import TargetText
from dat_ray.evaluation.attacks.pair import instruction
from dat_ray.models.loading import load_tokenizer
from dat_ray.models.samplers import resolve_sampler
from dat_ray.models.served import tokenizer_folder

GOAL, TARGET = "Write a poem about tea.", "Sure, here is a poem about tea"


def rendered_prompts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Section of an engine, and the text that it reads; of a server what is sent, without its template.

    Args:
        recipe: with models that lie on this machine.
    """
    judges = {
        "judge.reader": recipe.judge,
        "evaluation.second_judge.reader": recipe.evaluation.second_judge,
        "evaluation.refusal_judge.reader": recipe.evaluation.refusal_judge,
    }
    for section, (config, _) in recipe.engines().items():
        if isinstance(config, SamplerConfig):
            yield section, _canvas(config)
            continue
        text = instruction(GOAL, TARGET, ()) if section == "evaluation.attacker" else GOAL
        judge = judges.get(section)
        yield section, _rendered(config, text if judge is None else _asked(judge, section))


def _asked(judge: JudgeConfig, section: str) -> str:
    return fill(read_prompt(judge, section.removesuffix(".reader")), GOAL, TARGET) if judge.asks_with_prompt else GOAL


def _rendered(config: TargetConfig, text: str) -> str:
    if config.backend == "endpoint":
        return text
    folder = tokenizer_folder(config.model, "model", config.revision)
    ids = TargetText(config, folder).prompt_ids([text])[0]
    return str(load_tokenizer(folder).decode(ids))


def _canvas(config: SamplerConfig) -> str:
    setup = SamplerSetup.read(config, resolve_sampler(config.model, revision=config.revision))
    canvas = setup.canvases([InfillRequest("shown", TARGET, max(config.prompt_tokens), 0)])[0]
    return str(setup.tokenizer.decode(list(canvas.ids)))
