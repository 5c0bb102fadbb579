"""The base model's answers to the retain set's prompts: asked once on a machine, however many trainings need them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa
import ray

from dat_ray.cache import cache_root, check_cache
from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.ids import row_id
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import exists, read_file, write_file
from dat_ray.devices import multiplies_bfloat16
from dat_ray.engines.calls import Failure, call_isolated
from dat_ray.engines.roles import Engines
from dat_ray.engines.workers import Workers
from dat_ray.errors import DatError
from dat_ray.models.identity import check_weights, models_of
from dat_ray.progress import Progress, stage_line

# Prompts of one call to the target.
CHUNK = 64
# Answers may change with these.
ENGINE_PACKAGES = ("torch", "transformers", "vllm")
COLUMNS = ("prompt", "answer")


def base_answers(
    recipe: Recipe,
    run: RunDir,
    prompts: list[str],
    ask: Callable[[Recipe, list[str]], Sequence[str | Failure]] | None = None,
) -> list[str]:
    """The base model's greedy answers to prompts, one each, in order.

    They are kept in this machine's cache, by the model's weights, its settings, the versions of the engines' packages and the
    prompts themselves, and are taken from there when another training asks the same. Not on a cluster: its nodes may have
    unlike processors, which round unlike; nor where a prompt had none, such as one that is too long: its answer is empty.

    Args:
        recipe: its `target` and `training.retain.answer_tokens`.
        run: knows the weights.
        prompts: of the retain set.
        ask: asks the model; default: one pool of engines, gone afterwards.

    Raises:
        InputError: the cache cannot be written, or the model has other weights than when this run began.
        DatError: the engines failed, or more prompts than `generation.max_error_rate` allows.
    """
    ask = ask or _ask
    weights = check_weights(run.root, models_of(recipe, "target")).get("target.model")
    if weights is None or not _alone():
        return _texts(recipe, ask(recipe, prompts))
    folder = cache_root().absolute() / "answers"
    path = str(folder / f"{_key(recipe, weights, prompts)}.parquet")
    known = _read(path, prompts)
    if known is not None:
        stage_line(f"      retain: the base model's {len(prompts)} answers are known from an earlier training ({path})")
        return known
    check_cache(folder)
    found = ask(recipe, prompts)
    answers = _texts(recipe, found)
    if answers == list(found):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, pa.table(dict(zip(COLUMNS, (prompts, answers), strict=True))))
    return answers


def _texts(recipe: Recipe, found: Sequence[str | Failure]) -> list[str]:
    """What was answered; empty for what failed, which is said."""
    failed = [one.error for one in found if isinstance(one, Failure)]
    limit = ErrorLimit(len(found), recipe.generation.max_error_rate)
    if len(failed) > limit.rows:
        raise DatError(
            f"{len(failed)} of {len(found)} retain prompts have no answer of the base model, {limit.setting} = {limit.rate:g} "
            f"allows {limit.rows}; the first: {failed[0]}"
        )
    if failed:
        stage_line(f"      retain: {len(failed)} of {len(found)} prompts have no answer and are left out; the first: {failed[0]}")
    return ["" if isinstance(one, Failure) else one for one in found]


def _alone() -> bool:
    """Whether this machine is all of the cluster, for now and later."""
    return not os.environ.get("RAY_ADDRESS") and sum(node["Alive"] for node in ray.nodes()) == 1


def _key(recipe: Recipe, weights: str, prompts: Sequence[str]) -> str:
    assert recipe.training.retain is not None
    packages = [f"{name} {_version(name)}" for name in ENGINE_PACKAGES]
    settings = (fingerprint(recipe.target), recipe.training.retain.answer_tokens, recipe.cluster.target.num_gpus > 0)
    return row_id("retain answers", weights, *settings, multiplies_bfloat16(), *packages, *prompts)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _read(path: str, prompts: Sequence[str]) -> list[str] | None:
    """The stored answers to these prompts; None where there are none, or the file is damaged."""
    if not exists(path):
        return None
    try:
        table = read_file(path)
        if table["prompt"].to_pylist() != list(prompts):
            return None
        answers: list[str] = table["answer"].to_pylist()
    except (DatError, KeyError):
        stage_line(f"      retain: {path} is damaged: the base model is asked again")
        return None
    return answers


def _ask(recipe: Recipe, prompts: list[str]) -> list[str | Failure]:
    assert recipe.training.retain is not None
    pool = recipe.cluster.target
    build = partial(Engines().target, recipe.target, pool.threads, None)
    work = partial(_complete, recipe.training.retain.answer_tokens)
    chunks = [prompts[low : low + CHUNK] for low in range(0, len(prompts), CHUNK)]
    answers: dict[int, list[str | Failure]] = {}
    with Progress("retain answers", len(prompts)) as progress:
        progress.update(0, "starting the target model")
        with Workers("target", build, pool, recipe.timeouts) as workers:
            for index, texts in workers.map(work, [(chunk,) for chunk in chunks]):
                answers[index] = texts
                progress.update(sum(map(len, answers.values())), "answering")
    return [text for index in range(len(chunks)) for text in answers[index]]


def _complete(tokens: int, engine: Any, prompts: list[str]) -> list[str | Failure]:
    found = call_isolated(lambda some: engine.complete(list(some), tokens), prompts, CHUNK)
    return [one if isinstance(one, Failure) else one.text for one in found]
