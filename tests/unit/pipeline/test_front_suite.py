"""Which adapters of which trainings are asked: those that were kept, round by round, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dat_ray.config.study import Study, StudyRun, read_study
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.shards import write_bytes, write_manifest
from dat_ray.errors import InputError, ShardError
from dat_ray.evaluation.compared import adapter_digest
from dat_ray.pipeline.front_suite import adapters
from dat_ray.pipeline.study import study_models
from dat_ray.training.kept import kept_name
from dat_ray.training.trained import check_trained, trained_files


def a_study(folder: Path, every: int | None = 2) -> Study:
    tree = {
        "name": "x",
        "seeds": [5],
        "reference": "dat",
        "settings": {"training": {"updates": 5}},
        "arms": {"dat": {}, "rounds": {"settings": {"rounds": 2, "training": {"updates": 3}}}},
        "fronts": None if every is None else {"every": every},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    return read_study(str(path), [])


def trained(root: Path, run: StudyRun, kept: dict[int, list[int]]) -> str:
    """A run directory with an adapter in each round, and those that were kept."""
    found = open_run(str(root), run.recipe, resume=True)
    for index, numbers in kept.items():
        training = found.training(index)
        for folder in ["adapter", *map(kept_name, numbers)]:
            write_bytes(f"{training}/{folder}/adapter_model.safetensors", f"{run.model} {index} {folder}".encode())
        updates = run.recipe.training.updates or 0
        write_bytes(f"{training}/metrics.jsonl", "".join(json.dumps({"update": n}) + "\n" for n in range(updates)).encode())
        write_bytes(f"{found.training_set(index)}/part", b"")
        # What a kill left of one that was being written.
        write_bytes(f"{training}/kept/update-00000004.00.partial/adapter_model.safetensors", b"half")
        write_manifest(training, trained_files(training), found.fingerprint_of(run.recipe))
    return str(root)


def test_adapters_are_those_of_all_rounds_by_updates(tmp_path: Path) -> None:
    plan = a_study(tmp_path)
    dat, rounds = plan.runs
    folders = {
        "dat@5": trained(tmp_path / "dat", dat, {0: [2, 4]}),
        "rounds@5": trained(tmp_path / "rounds", rounds, {0: [2], 1: [2]}),
    }
    found = adapters(plan, folders)
    expected = {
        "dat@5u2": "dat/training/round-0/kept/update-00000002",
        "dat@5u4": "dat/training/round-0/kept/update-00000004",
        "dat@5u5": "dat/training/round-0/adapter",
        "rounds@5u2": "rounds/training/round-0/kept/update-00000002",
        "rounds@5u3": "rounds/training/round-0/adapter",
        "rounds@5u5": "rounds/training/round-1/kept/update-00000002",
        "rounds@5u6": "rounds/training/round-1/adapter",
    }
    assert found == {name: str(tmp_path / path) for name, path in expected.items()}
    assert list(found) == list(expected)
    # Runs by their directories, and adapters by their folders.
    assert plan.front is not None
    models = study_models(plan.front, found)
    assert [(model.name, model.adapter) for model in models] == [("base", None), *found.items()]
    assert models[1].weights == adapter_digest(found["dat@5u2"])
    last = study_models(plan.front, folders)[2]
    assert (last.name, last.adapter) == ("rounds@5", found["rounds@5u6"])
    assert plan.front_suites == {"fronts": plan.front}


def test_a_training_that_kept_none_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    plan = a_study(tmp_path)
    folders = {
        "dat@5": trained(tmp_path / "dat", plan.runs[0], {0: [2]}),
        "rounds@5": trained(tmp_path / "rounds", plan.runs[1], {0: [2], 1: [2]}),
    }
    with pytest.raises(InputError, match=r"round-0 kept no adapter after 4 updates: remove it and train again"):
        adapters(plan, folders)
    with pytest.raises(ShardError):
        adapters(plan, {**folders, "dat@5": str(tmp_path / "nowhere")})
    without = a_study(tmp_path, every=None)
    assert adapters(without, folders) == {}
    assert without.front_suites == {}


def test_a_kept_adapter_that_was_altered_is_found(tmp_path: Path) -> None:
    run = a_study(tmp_path).runs[0]
    training = RunDir(trained(tmp_path / "dat", run, {0: [2, 4]})).training(0)
    mark = RunDir(str(tmp_path / "dat")).fingerprint_of(run.recipe)
    check_trained(training, mark)
    write_bytes(f"{training}/{kept_name(4)}/adapter_model.safetensors", b"another")
    with pytest.raises(ShardError, match=r"kept/update-00000004/adapter_model.safetensors is missing or was altered"):
        check_trained(training, mark)
