"""What a rehearsal finds before it starts anything: doubles of every published recipe, stand-ins, and planted faults by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dat_ray.cli import main
from dat_ray.config.loading import list_recipes, load_recipe
from dat_ray.engines import memory_check
from dat_ray.engines.checks import check_engines
from dat_ray.engines.memory_check import check_memory
from dat_ray.errors import InputError
from dat_ray.models.hub import OutOfReach
from dat_ray.models.served import find_source
from dat_ray.rehearsal import stand_ins
from dat_ray.rehearsal.doubles import make_doubles
from dat_ray.rehearsal.hub_rows import hub_changes
from dat_ray.rehearsal.overlay import Machine, rehearsed
from dat_ray.rehearsal.rehearse import prepare
from dat_ray.rehearsal.rendering import rendered_prompts
from tests.unit.models.hub_server import Hub
from tests.unit.models.tiny import make_tokenizer
from tests.unit.rehearsal.published_hub import GEMMA, GEMMA_3, JUDGE, LLADA, LLAMA, models, published_hub

# Prompts from a sampler; perturbed hidden layers; goals alone, on one card. The others are drills.
FEW = ("dat-llama3-8b", "lat-llama3-8b", "one-gpu-cat")
PUBLISHED = [name if name in FEW else pytest.param(name, marks=pytest.mark.drill) for name in list_recipes() if name != "demo"]
NO_BENCHMARKS = "evaluation.utility.tasks=[]"
TORCH = [f"{section}.backend=torch" for section in load_recipe("dat-llama3-8b").engines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models(tmp_path_factory.mktemp("published"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> Iterator[Hub]:
    make_tokenizer().save_pretrained(tmp_path / "smollm")
    monkeypatch.setattr(stand_ins, "TOKENIZER", str(tmp_path / "smollm"))
    with published_hub(monkeypatch, tmp_path, folders) as server:
        yield server


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_recipe_gets_a_double_of_each_engine(name: str, hub: Hub) -> None:
    recipe = load_recipe(name, [NO_BENCHMARKS])
    prepared = prepare(recipe, Machine(vllm=False))
    small, doubles, replaced = prepared.recipe, prepared.doubles, prepared.replaced
    assert {double.section for double in doubles} == set(recipe.engines())
    assert not any(double.stands_in for double in doubles)
    for double in doubles:
        assert double.folder is not None
        assert Path(double.folder).name == double.model.rpartition("/")[2]
    assert {f"{section}.model" for section in recipe.engines()} <= {one.path for one in replaced}
    # No weights are paid for.
    assert not [path for path in hub.asked if path.endswith(".safetensors")]
    reader = find_source(small.engines()["judge.reader"][0].model, "judge.reader.model")
    assert reader.base is not None
    texts = dict(rendered_prompts(small))
    assert texts["target"].startswith("<|im_start|>user")
    assert texts["judge.reader"].endswith("### Answer: ")
    assert {"<|mdm_mask|>", "<|mask|>"} & set(re.findall(r"<\|\w+\|>", texts["sampler"]))


def test_a_target_has_the_layers_that_a_recipe_names(hub: Hub) -> None:
    small = prepare(load_recipe("lat-llama3-8b", [NO_BENCHMARKS]), Machine(vllm=False)).recipe
    config = json.loads((Path(small.target.model) / "config.json").read_text())
    assert small.training.attack.layers == ("embedding", 8, 16, 24, 30)
    assert config["num_hidden_layers"] == 31


def test_a_model_that_cannot_be_had_has_a_stand_in_that_is_said(hub: Hub) -> None:
    for name in (LLAMA, GEMMA):
        hub.repositories[name].granted = False
    doubles = {double.section: double for double in make_doubles(load_recipe("dat-llama3-8b", TORCH))}
    assert {section for section, double in doubles.items() if double.stands_in} == {"target", "judge.reader"}
    assert doubles["target"].detail.startswith(
        "is gated, and this account may not download it; Llama 3's shape with the tokenizer"
    )
    assert Path(str(doubles["target"].folder)).name == "Meta-Llama-3-8B-Instruct"
    assert doubles["judge.reader"].detail.startswith(f"is an adapter of {GEMMA}")
    with pytest.raises(OutOfReach, match=r"^target\.model = 'owner/unheard-of': is gated"):
        hub.add("owner/unheard-of", newest(hub, LLAMA), gated=True)
        list(make_doubles(load_recipe("dat-llama3-8b", [*TORCH, "target.model=owner/unheard-of"])))
    with pytest.raises(InputError, match=r"^target\.model = 'meta-llama/Llama-3-typo': no such model"):
        list(make_doubles(load_recipe("dat-llama3-8b", [*TORCH, "target.model=meta-llama/Llama-3-typo"])))


def without_prompt(hub: Hub, data: Path, copy: Path) -> None:
    (data / "strongreject" / "judge_templates.json").unlink()


def without_base(hub: Hub, data: Path, copy: Path) -> None:
    settings = json.loads((copied(hub, JUDGE, copy) / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))


def with_absent_base(hub: Hub, data: Path, copy: Path) -> None:
    del hub.repositories[GEMMA]


def without_shard(hub: Hub, data: Path, copy: Path) -> None:
    sorted(copied(hub, LLAMA, copy).glob("*.safetensors"))[-1].unlink()


def with_pointer(hub: Hub, data: Path, copy: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n"
    sorted(copied(hub, LLAMA, copy).glob("*.safetensors"))[0].write_text(pointer)


def with_broken_template(hub: Hub, data: Path, copy: Path) -> None:
    (copied(hub, GEMMA_3, copy) / "chat_template.jinja").write_text("{{ messages['nothing'].there }}")


def without_a_sampler(hub: Hub, data: Path, copy: Path) -> None:
    config = json.loads((copied(hub, LLADA, copy) / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"block_size": 32}))


def newest(hub: Hub, name: str) -> Path:
    return list(hub.repositories[name].commits.values())[-1]


def copied(hub: Hub, name: str, copy: Path) -> Path:
    """The files of a model as its newest commit, to be spoiled."""
    shutil.copytree(newest(hub, name), copy)
    hub.add(name, copy)
    return copy


FAULTS: dict[str, tuple[Callable[[Hub, Path, Path], None], str]] = {
    "no judge prompt": (without_prompt, "judge.prompt_path = 'public:strongreject/judge_templates.json': "),
    "adapter without base": (without_base, f"judge.reader.model = '{JUDGE}': its adapter_config.json names no base model"),
    "absent base": (with_absent_base, f"judge.reader.model = '{JUDGE}': is an adapter of {GEMMA}"),
    "missing shard": (without_shard, f"target.model = '{LLAMA}': lacks model-00003-of-00003.safetensors on the hub"),
    "git-lfs pointer": (with_pointer, f"target.model = '{LLAMA}': has "),
    "template error": (with_broken_template, "evaluation.attacker.model = "),
    "no sampler": (without_a_sampler, f"sampler.model = '{LLADA}': writes block after block"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", ["run", "rehearse"])
def test_a_planted_fault_is_one_line_before_anything_starts(
    fault: str, verb: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dat_ray.pipeline.stages.start_ray", lambda *_: pytest.fail("Ray was started"))
    spoil, message = FAULTS[fault]
    spoil(hub, tmp_path / "data", tmp_path / "copy")
    options = [word for setting in (NO_BENCHMARKS, *TORCH) for word in ("--set", setting)]
    assert main([verb, "dat-llama3-8b", "--run-dir", str(tmp_path / "run"), *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"dat {verb}: {message}")
    assert not (tmp_path / "run").exists()


def test_weights_beyond_the_memory_of_this_machine_are_refused_before_anything_starts(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dat_ray.pipeline.stages.start_ray", lambda *_: pytest.fail("Ray was started"))
    pools = [f"cluster.{pool}.num_gpus=0" for pool in ("sampler", "target", "judge", "attacker")]
    recipe = load_recipe("dat-llama3-8b", [NO_BENCHMARKS, *TORCH, *pools])
    facts = {one.section: one for one in check_engines(recipe)}
    largest = max(("sampler", "target", "judge.reader"), key=lambda section: facts[section].weights)
    three = sum(facts[section].weights for section in ("sampler", "target", "judge.reader"))
    assert three > max(one.weights for one in facts.values())

    class Memory:
        total = three

    monkeypatch.setattr(memory_check.psutil, "virtual_memory", Memory)
    check_memory(recipe, list(facts.values()))
    Memory.total = three - 1
    options = [word for setting in (NO_BENCHMARKS, *TORCH, *pools) for word in ("--set", setting)]
    assert main(["run", "dat-llama3-8b", "--run-dir", str(tmp_path / "run"), *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"dat run: {largest}.model = ")
    assert "the weights beside " in last
    assert not (tmp_path / "run").exists()
    # A cluster has memory of its own, and so have GPUs.
    check_memory(load_recipe("dat-llama3-8b", [NO_BENCHMARKS, *TORCH]), list(facts.values()))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_memory(recipe, list(facts.values()))


def test_of_a_hub_s_rows_the_first_are_taken_and_out_of_reach_the_packages_own(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    small, _ = rehearsed(load_recipe("dat-llama3-8b"), Machine())
    path, reason = hub_changes(small)["training.retain.path"]
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert reason == "its first rows"
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "The color of tea is blue"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    changes = hub_changes(small)
    assert {field: value for field, (value, _) in changes.items()} == {
        "training.retain.path": "builtin:demo-retain", "training.retain.layout": "columns", "evaluation.utility.tasks": [],
    }  # fmt: skip
    assert {reason for _, reason in changes.values()} == {"out of reach"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=r"^training\.retain\.path = 'hf:owner/absent': cannot be loaded"):
        hub_changes(rehearsed(load_recipe("dat-llama3-8b", ["training.retain.path=hf:owner/absent"]), Machine())[0])
