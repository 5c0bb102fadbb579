"""`dat status`: how far a run is, from its directory alone; with a cluster at `RAY_ADDRESS`, who works on it.

Ray is not started. What a stage has finished is counted in its shards, what it is doing is read in the run's log.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dat_ray import __version__
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, RunRecord, last_round, open_to_read, rounds_begun
from dat_ray.data.shards import exists, has_manifest, join, list_folder, open_filesystem, read_bytes, read_manifest
from dat_ray.data.stored import MISSHAPEN
from dat_ray.errors import DatError, error_line
from dat_ray.json_text import JsonError, parse_object
from dat_ray.printable import printable
from dat_ray.progress import clock

# A run writes its log every ten seconds while anything goes on.
SECONDS_OF_SILENCE = 60.0
ROLES = {
    "SamplerActor": "sampler",
    "TargetActor": "target",
    "JudgeActor": "judge",
    "EncoderActor": "encoder",
    "RayTrainWorker": "trainer",
    "EngineHost": "engine",
}


def read_status(root: str) -> dict[str, Any]:
    """How far each stage is.

    Args:
        root: run directory, a local path or a URI.

    Returns:
        `{"run", "recipe", "fingerprint", "state", "stages": [...], "blocks", "cluster"}`; a stage has `stage`, `state`
        (`complete`, `running`, `stopped`, `not started`), `done`, `total`, `unit`, `per_second`, `seconds_left`, `note`.

    Raises:
        InputError: no run there.
        DatError: a file of another version that this one does not understand.
    """
    run, record = open_to_read(root)
    try:
        return _status(run, record)
    except MISSHAPEN as error:
        versions = f"{run.root} was begun by dat_ray {record.version}, and {__version__} cannot read all of it"
        remedy = "use that version" if record.version != __version__ else "a file in it was altered or damaged"
        raise DatError(f"{versions} ({error_line(error, 180)}): {remedy}") from error


def _status(run: RunDir, record: RunRecord) -> dict[str, Any]:
    recipe = record.recipe
    events = _events(run)
    last = {event["stage"]: event for event in events if event["event"] == "progress"}
    alive = bool(events) and events[-1]["event"] != "end" and time.time() - events[-1]["time"] < SECONDS_OF_SILENCE
    stages = [_with_pace(stage, last.get(stage["stage"].partition(",")[0]), alive) for stage in _stages(run, recipe)]
    ended = bool(events) and not alive
    return {
        "run": run.root,
        "recipe": recipe.name,
        "fingerprint": record.fingerprint,
        "state": "running"
        if alive
        else "complete"
        if all(s["state"] == "complete" for s in stages)
        else "stopped"
        if ended
        else "begun",
        "stages": stages,
        "blocks": _blocks(events, stages, alive),
        "cluster": _cluster(),
    }


def _stages(run: RunDir, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """What is on disk of each stage, in order."""
    *_, index = rounds_begun(run, recipe)
    # Of several rounds the one that goes on.
    of_round = f", round {index + 1} of {recipe.rounds}" if recipe.rounds > 1 else ""
    candidates, chosen = run.candidates(index), run.training_set(index)
    requests = join(candidates, "_input")
    total = read_manifest(requests).rows if has_manifest(requests) else None
    if has_manifest(candidates):
        rows = read_manifest(candidates).rows
        yield _stage(f"generate{of_round}", True, rows, rows, "rows")
    else:
        # Counted as a resume would: rows whose shard was written to its end.
        yield _stage(f"generate{of_round}", False, _rows_below(join(candidates, "_checkpoint"), skip=".pending."), total, "rows")
    kept = read_manifest(chosen).rows if has_manifest(chosen) else None
    yield _stage(f"select{of_round}", kept is not None, kept or 0, kept, "rows")
    trained = _training(run.training(index), recipe, kept)
    yield trained | {"stage": trained["stage"] + of_round}
    if index < last_round(recipe):
        ahead = last_round(recipe) - index
        yield _stage("rounds after it", False, 0, ahead, "rounds")
    yield from _evaluations(run)
    report = join(run.report, "index.html")
    yield _stage("report", exists(report), int(exists(report)), 1, "pages")


def _training(root: str, recipe: Recipe, rows: int | None) -> dict[str, Any]:
    from dat_ray.training.update_metrics import read_metrics

    log = read_metrics(root)
    updates = recipe.training.updates
    if updates is None and rows is not None:
        updates = math.ceil(recipe.training.epochs * rows / recipe.training.harmful_rows)
    done = int(log[-1]["update"]) + 1 if log else 0
    return _stage("train", has_manifest(root), done, updates, "updates")


def _evaluations(run: RunDir) -> Iterator[dict[str, Any]]:
    for suite in run.suites() or ["default"]:
        folder = run.evaluation(suite)
        done = sum(_rows_below(join(folder, part)) for part in ("", "prompts", "target_logprob"))
        complete = has_manifest(folder)
        name = "evaluate" if suite == "default" else f"evaluate {suite}"
        yield _stage(name, complete, done, done if complete else None, "rows")


def _stage(name: str, complete: bool, done: int, total: int | None, unit: str) -> dict[str, Any]:
    state = "complete" if complete else "stopped" if done else "not started"
    return {"stage": name, "state": state, "done": done, "total": total, "unit": unit}


def _rows_below(folder: str, skip: str | None = None) -> int:
    """Rows of the parquet files directly in a folder, from their footers."""
    fs, _ = open_filesystem(folder)
    total = 0
    for info in list_folder(folder):
        if info.is_file and info.base_name.endswith(".parquet") and not (skip and skip in info.base_name):
            try:
                with fs.open_input_file(info.path) as stream:
                    total += pq.read_metadata(stream).num_rows
            except (OSError, pa.ArrowInvalid):
                continue  # written at this moment, or cut short: the stage makes its rows again
    return total


def _events(run: RunDir) -> list[dict[str, Any]]:
    """The log of the process that wrote last."""
    logs = [info for info in list_folder(run.logs) if info.base_name.startswith("events-")]
    if not logs:
        return []
    newest = max(logs, key=lambda info: (info.mtime_ns or 0, info.base_name))
    found = []
    for line in read_bytes(join(run.logs, newest.base_name)).splitlines():
        with suppress(JsonError):  # cut short, or no line of a log
            event = parse_object(line)
            kind = event.get("event")
            if isinstance(kind, str) and all(isinstance(event.get(name), of) for name, of in _fields(kind).items()):
                found.append(event)
    return found


def _fields(kind: str) -> dict[str, Any]:
    """What is read here of an event of a kind, by the types that it has."""
    read: dict[str, dict[str, Any]] = {
        "progress": {"stage": str, "state": str, "total": int | None, "per_second": int | float | None, "note": str},
        "failure": {"kind": str, "text": str},
    }
    return {"time": int | float} | read.get(kind, {})


def _with_pace(stage: dict[str, Any], seen: dict[str, Any] | None, alive: bool) -> dict[str, Any]:
    """Adds rate, time left and note of the stage's last progress record."""
    stage |= {"per_second": None, "seconds_left": None, "note": ""}
    if seen is None or stage["state"] == "complete":
        return stage
    stage["total"] = stage["total"] if stage["total"] is not None else seen["total"]
    stage["note"] = seen["note"]
    if alive and seen["state"] == "running":
        rate = seen["per_second"]
        stage["state"], stage["per_second"] = "running", rate
        if rate and stage["total"]:
            stage["seconds_left"] = round(max(0, stage["total"] - stage["done"]) / rate, 1)
    return stage


def _blocks(events: list[dict[str, Any]], stages: list[dict[str, Any]], alive: bool) -> str | None:
    """Why nothing goes on, or what a stage waits for; None where nothing blocks."""
    failures = [event for event in events if event["event"] == "failure"]
    unfinished = [stage for stage in stages if stage["state"] != "complete"]
    if not unfinished:
        return None
    if failures:
        return f"{failures[-1]['kind']}: {failures[-1]['text']}"
    running = [stage for stage in stages if stage["state"] == "running"]
    if running and running[0]["per_second"] is None and running[0]["note"]:
        return f"{running[0]['stage']}: {running[0]['note']}"
    if not alive and events and events[-1]["event"] != "end":
        quiet = clock(time.time() - events[-1]["time"])
        return f"its process has not written for {quiet}: it was killed, or its machine is gone; --resume continues"
    return None


def _cluster() -> dict[str, Any] | None:
    """Processes of each role on the cluster that `RAY_ADDRESS` names; None without one."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return None
    import ray

    from dat_ray.config.cluster import ClusterConfig
    from dat_ray.raysession import start_ray

    with start_ray(ClusterConfig()):
        actors: Counter[tuple[str, str]] = Counter()
        for actor in ray._private.state.actors().values():
            role = next((name for word, name in ROLES.items() if word in str(actor.get("ActorClassName"))), None)
            if role and actor["State"] != "DEAD":
                actors[role, "alive" if actor["State"] == "ALIVE" else "waiting"] += 1
        return {
            "address": address,
            "nodes": sum(node["Alive"] for node in ray.nodes()),
            "free": {key: value for key, value in ray.available_resources().items() if key in ("CPU", "GPU")},
            "pools": {role: {s: actors[role, s] for s in ("alive", "waiting")} for role in sorted({r for r, _ in actors})},
        }


def show(status: dict[str, Any]) -> str:
    """The status for a person."""
    lines = [f"{status['run']}: recipe {status['recipe']}, fingerprint {status['fingerprint']}, {status['state']}"]
    for stage in status["stages"]:
        total = "?" if stage["total"] is None else stage["total"]
        counts = f"{stage['done']}/{total} {stage['unit']}" if stage["state"] != "not started" else ""
        rate = f"{stage['per_second']:.2g} {stage['unit']}/s" if stage["per_second"] else ""
        left = f"{clock(stage['seconds_left'])} left" if stage["seconds_left"] is not None else ""
        parts = [part for part in (stage["state"], counts, rate, left, stage["note"]) if part]
        lines.append(f"  {stage['stage']:10} {', '.join(parts)}")
    if status["blocks"]:
        lines.append(f"  blocked: {status['blocks']}")
    if status["cluster"]:
        found = status["cluster"]
        pools = ", ".join(
            f"{role} {n['alive']} up" + (f" {n['waiting']} waiting" if n["waiting"] else "") for role, n in found["pools"].items()
        )
        free = ", ".join(f"{value:g} {key}" for key, value in found["free"].items())
        lines.append(f"  cluster {found['address']}: {found['nodes']} nodes, free {free or 'nothing'}; pools: {pools or 'none'}")
    return "\n".join(map(printable, lines))
