"""`dat rehearse` of published recipes against a server that plays the hub: every stage, the export and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from dat_ray.cli import main
from dat_ray.config.loading import list_recipes, load_recipe
from dat_ray.data.rundir import RunDir, read_record
from dat_ray.evaluation.results import load_metrics
from tests.unit.models.hub_server import Hub
from tests.unit.rehearsal.published_hub import models, published_hub

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Prompts from a sampler and forward KL; as drills perturbed hidden layers and the data's own loss, and goals alone.
REHEARSED = ("dat-llama3-8b", *(pytest.param(name, marks=pytest.mark.drill) for name in ("lat-llama3-8b", "cat-qwen2.5-14b")))
SHORTER = ("target.max_new_tokens=24", "evaluation.max_new_tokens=24", "evaluation.pair.max_new_tokens=48")


TASK = """
task: local_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: [" yes", " no"]
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models(tmp_path_factory.mktemp("published"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> Iterator[Hub]:
    with published_hub(monkeypatch, tmp_path, folders) as server:
        yield server


def rehearse(name: str, tmp_path: Path, *options: str, tasks: Sequence[str] = ()) -> int:
    # The questions of benchmarks are the one thing that the server does not have.
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": f"Is it {i}?"}) + "\n" for i in range(3)))
    (folder / "local.yaml").write_text(TASK.format(data=folder / "questions.jsonl"))
    settings = (f"evaluation.utility.tasks=[{','.join(tasks)}]", f"evaluation.utility.include_path={folder}")
    words = [word for setting in settings for word in ("--set", setting)]
    return main(["rehearse", name, "--run-dir", str(tmp_path / "run"), *words, *options])


@pytest.mark.slow
@pytest.mark.parametrize("name", REHEARSED)
def test_a_published_recipe_goes_through_to_its_report(
    name: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Shorter answers than the recipe's: the drills have those.
    shorter = [word for setting in SHORTER for word in ("--set", setting)]
    # lm-eval takes seconds to list its tasks: one recipe is enough, and tests of its own run it elsewhere.
    tasks = ["local_questions"] if name == "lat-llama3-8b" else []
    assert rehearse(name, tmp_path, "--backend", "torch", "--show-prompts", *shorter, tasks=tasks) == 0
    out = capsys.readouterr().out
    run = RunDir(str(tmp_path / "run"))
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    stages = [json.loads(line)["stage"] for line in (tmp_path / "run" / "logs" / "stages.jsonl").read_text().splitlines()]
    assert stages[-4:] == ["train", "evaluate", "report", "export"]
    recipe, published = read_record(run).recipe, load_recipe(name)
    assert recipe.training.away == published.training.away
    metrics = load_metrics(run.evaluation("default"))
    assert set(metrics.attacks) == set(published.evaluation.attacks)
    # The judge grades by probabilities, which a random model has too.
    given = [model.every_answer for model in metrics.models.values()]
    assert all(one.answers > one.unparsed + one.errors for one in given)
    assert all(list(model.utility) == tasks for model in metrics.models.values())
    for section in published.engines():
        assert f"{section} reads:" in out
    assert "qylu4156/strongreject-15k-v1" in out
    assert "an adapter of google/gemma-2b" in out
    assert f"rehearsed {name}" in out


@pytest.mark.drill
@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_rehearsed_with_its_own_backend(name: str, hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    # vLLM's own class of Gemma 3 imports torchvision.
    attacker = load_recipe(name).evaluation.attacker
    sees = attacker is not None and "gemma-3" in attacker.model and find_spec("torchvision") is None
    assert rehearse(name, tmp_path, *(["--set", "evaluation.attacker.backend=torch"] if sees else [])) == 0
    assert (tmp_path / "run" / "report" / "index.html").is_file()
