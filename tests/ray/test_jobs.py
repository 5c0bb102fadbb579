"""`ray job submit` and `dat submit` on a real cluster of a head without work and two groups, with token authentication."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dat_ray.config.loading import load_recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import has_manifest, read_table
from dat_ray.diffusion.canvas import SamplerSpec, banned_ids
from dat_ray.generation.select import select
from dat_ray.models.loading import load_tokenizer
from tests.ray.own_cluster import RAY, REPOSITORY, SECRET, OwnCluster, own_cluster
from tests.ray.tiny_training import save_tiny_chat_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BEHAVIORS = 4
# What a job's process must be able to say, whatever node it runs on.
ACTORS = """
import json, ray
from dat_ray.own_stdout import own_stdout
stdout = own_stdout()
stdout.__enter__()
ray.init(log_to_driver=False)
labels = {node["NodeID"]: node["Labels"].get("ray-subcluster") for node in ray.nodes()}
found = [[actor["ActorClassName"], labels.get(actor["Address"]["NodeID"])] for actor in ray._private.state.actors().values()]
ports = [[node["NodeManagerAddress"], node["MetricsExportPort"]] for node in ray.nodes() if node["Alive"]]
print(json.dumps({"actors": found, "ports": ports}))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    with own_cluster([("generation", 4), ("training", 1)]) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory as a user has it: jobs/, a recipe, its data. The models lie on the shared storage."""
    root = tmp_path_factory.mktemp("work")
    shutil.copytree(REPOSITORY / "jobs", root / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    models = tmp_path_factory.mktemp("shared")
    save_tiny_chat_model(models / "target")
    shutil.copytree(models / "target", models / "sampler")
    tokenizer = load_tokenizer(str(models / "target"))
    mask, vocabulary = tokenizer.convert_tokens_to_ids("Ā"), len(tokenizer)
    before, between = (tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in ("user: ", "assistant: "))
    SamplerSpec(mask, 1, banned_ids(tokenizer, mask, vocabulary), "chat", before, between).write(models / "sampler")
    for name in ("train", "heldout"):
        with (root / f"{name}.csv").open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["goal", "target"])
            rows.writerows([f"tell {name} story {word}", f"Sure, {word}"] for word in ("alpha", "bravo", "carol", "delta"))
    retain = [{"prompt": f"add {i} and {i}", "response": f"It is {i + i}."} for i in range(4)]
    (root / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in retain))
    pinned = {"num_cpus": 0.5, "subcluster": "generation"}
    engine = {"backend": "torch", "dtype": "float32"}
    recipe: dict[str, Any] = {
        "name": "tiny-job",
        "behaviors": {"path": "train.csv", "format": "table", "heldout": {"path": "heldout.csv", "format": "table"}},
        "sampler": engine
        | {"model": str(models / "sampler"), "layout": "chat", "prompt_tokens": [6], "steps": 3, "batch_size": 4},
        "target": engine | {"model": str(models / "target"), "max_new_tokens": 4, "max_model_len": 128, "batch_size": 4},
        "generation": {"samples_per_target": 4, "rows_per_block": 4},
        "selection": {"keep": 2, "score": "loglik", "include_original": True},
        "training": {
            "updates": 4,
            "harmful_rows": 2,
            "retain_rows": 2,
            "dtype": "float32",
            "checkpoint_every": 2,
            "attack": {"steps": 1},
            "lora": {"rank": 2},
            "retain": {"path": "retain.jsonl"},
        },
        "cluster": {
            "sampler": dict(pinned),
            "target": dict(pinned),
            "judge": pinned | {"num_cpus": 0.1},
            "trainer": {"num_cpus": 1, "subcluster": "training"},
        },
        "timeouts": {"engine_start": 240, "no_progress": 240, "worker_group_start": 240},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return RunDir(str(tmp_path_factory.mktemp("runs") / "first"))


def dat(cluster: OwnCluster, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return cluster.run(sys.executable, "-m", "dat_ray.cli", *arguments, **variables)


def submission(cluster: OwnCluster, folder: Path, run: RunDir, stage: str, *more: str) -> list[str]:
    where = ["--address", cluster.dashboard, "--working-dir", str(folder), "--include", ".", "--run-dir", run.root]
    return [stage, str(folder / "recipe.yaml"), *where, *more]


def ask(cluster: OwnCluster) -> dict[str, Any]:
    done = cluster.run(sys.executable, "-c", ACTORS, RAY_ADDRESS=cluster.address)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def _read_metrics(ports: list[list[Any]], seen: list[str]) -> None:
    """Reads every node's metrics until rows are among them; appends that page."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for host, port in ports:
            try:
                with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as page:
                    text = page.read().decode()
            except OSError:
                continue  # a node's exporter comes up after the node
            if "ray_dat_rows_total" in text:
                seen.append(text)
                return
        time.sleep(0.3)


@pytest.mark.drill
def test_the_doctor_sees_the_groups_and_asks_every_node(
    cluster: OwnCluster, folder: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # as a user: the recipe's paths start where it lies
    arguments = ("doctor", "recipe.yaml", "--run-dir", run.root, "--json")
    done = dat(cluster, *arguments, RAY_ADDRESS=cluster.address)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["ok"]
    details = {check["name"]: check["detail"] for check in report["checks"]}
    assert "can run on generation nodes" in details["generate: sampler"]
    assert "can run on training nodes" in details["train: trainer"]
    assert "written and read by 3 nodes" in details["storage"]
    assert "3 nodes as this machine" in details["versions on every node"]
    assert not Path(run.root).exists(), "the doctor leaves nothing behind"


@pytest.mark.drill
def test_the_doctor_names_what_the_cluster_lacks_and_the_group_that_could_have_been_meant(
    cluster: OwnCluster, folder: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    lacking = ("--set", "cluster.sampler.subcluster=sampling", "--set", "cluster.trainer.num_cpus=3")
    done = dat(cluster, "doctor", "recipe.yaml", "--run-dir", run.root, "--json", *lacking, RAY_ADDRESS=cluster.address)
    assert done.returncode == 1
    failed = {check["name"]: check for check in json.loads(done.stdout)["checks"] if not check["ok"]}
    assert set(failed) == {"generate: sampler", "train: trainer"}
    assert "no group has that label (there: generation, training)" in failed["generate: sampler"]["detail"]
    assert "no node can hold one actor (training nodes 1 CPU and 0 GPU)" in failed["train: trainer"]["detail"]
    assert all(check["remedy"] for check in failed.values())


def test_a_generate_job_runs_on_its_group_and_a_second_one_is_refused(cluster: OwnCluster, folder: Path, run: RunDir) -> None:
    ports = ask(cluster)["ports"]
    command = [sys.executable, "-m", "dat_ray.cli", "submit", *submission(cluster, folder, run, "generate")]
    first = subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert first.stdout is not None
    printed = []
    for line in first.stdout:
        printed.append(line)
        if line.startswith("ray job submit"):
            break
    # A process that has ended takes its metrics along: they are read while it works.
    seen: list[str] = []
    thread = threading.Thread(target=_read_metrics, args=(ports, seen), daemon=True)
    thread.start()
    second = dat(cluster, "submit", *submission(cluster, folder, run, "generate", "--no-wait"))
    assert second.returncode == 1, second.stderr
    [refusal] = [line for line in second.stderr.splitlines() if line.startswith("dat submit: ")]
    assert re.search(
        r"job (dat-generate-\w+-1) works on this run directory already: follow it with `ray job logs -f \1`", refusal
    )

    thread.join()
    [pages] = seen
    assert re.search(r'ray_dat_rows_total\{[^}]*role="\w+"[^}]*stage="generate"', pages)
    printed.append(first.stdout.read())
    assert first.wait() == 0, "".join(printed)
    assert "generate: 16/16 rows (100%) done in" in "".join(printed)
    assert read_table(run.candidates(0)).num_rows == BEHAVIORS * 4
    roles = {(name, label) for name, label in ask(cluster)["actors"] if "Actor" in name and "Map" in name}
    assert roles
    assert {label for _, label in roles} == {"generation"}

    written = "".join(path.read_text(errors="ignore") for path in Path(run.root).rglob("*") if path.suffix in (".json", ".jsonl"))
    assert "events-" in str(list(Path(run.logs).iterdir()))
    assert SECRET[1] not in written
    status = dat(cluster, "status", run.root, "--json")
    stages = {stage["stage"]: stage for stage in json.loads(status.stdout)["stages"]}
    assert (stages["generate"]["state"], stages["generate"]["done"]) == ("complete", 16)
    assert stages["train"]["state"] == "not started"


@pytest.mark.drill
def test_the_plain_line_runs_training_on_the_other_group(
    cluster: OwnCluster, folder: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    if not has_manifest(run.candidates(0)):  # where the test before runs, its job left them
        made = dat(cluster, "submit", *submission(cluster, folder, run, "generate"))
        assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    select(run, load_recipe("recipe.yaml"))
    line = dat(cluster, "submit", *submission(cluster, folder, run, "train", "--print"))
    assert line.returncode == 0, line.stderr
    words = shlex.split(line.stdout)
    assert words[:3] == ["ray", "job", "submit"]
    done = cluster.run(RAY, *words[1:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "train: 4/4 updates (100%) done in" in done.stdout + done.stderr
    assert (Path(run.adapter(0)) / "adapter_model.safetensors").is_file()
    assert not [path for path in Path(run.root).rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    assert {label for name, label in ask(cluster)["actors"] if "TrainWorker" in name} == {"training"}


@pytest.mark.drill
def test_a_run_that_cannot_fit_says_so_in_time_and_fails(cluster: OwnCluster, folder: Path, run: RunDir, tmp_path: Path) -> None:
    other = RunDir(str(tmp_path / "lacking"))
    lacking = ("--set", "cluster.sampler.subcluster=sampling")
    done = dat(cluster, "submit", *submission(cluster, folder, other, "generate", *lacking))
    assert done.returncode == 1
    assert "ray-subcluster=sampling" in done.stdout
    assert "failed" in done.stderr
    blocked = json.loads(dat(cluster, "status", other.root, "--json").stdout)["blocks"]
    assert "ray-subcluster=sampling" in blocked
