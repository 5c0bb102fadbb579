"""Whatever a file of somebody else holds, a reader gives values or one line: no other error, no hang."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dat_ray.config.adapt import load_adapt_config
from dat_ray.config.evaluation import PromptFile
from dat_ray.config.loading import load_recipe, recipe_text
from dat_ray.config.models import EndpointConfig, TargetConfig, TemplateConfig
from dat_ray.config.sweep import read_sweep
from dat_ray.data.prompt_files import match_prompts, read_prompts
from dat_ray.data.rundir import open_to_read
from dat_ray.data.shards import read_table
from dat_ray.diffusion.canvas import SamplerSpec
from dat_ray.engines.base import Completion
from dat_ray.engines.endpoint import EndpointModel
from dat_ray.errors import DatError
from dat_ray.evaluation import rescore
from dat_ray.models.adapter_settings import read_adapter_settings
from dat_ray.models.loading import load_model_config, load_tokenizer, model_fingerprint
from dat_ray.models.samplers import resolve_sampler
from dat_ray.models.template import ChatTemplate
from dat_ray.models.weight_files import refuse_quantized, stored_tensors
from dat_ray.ops.status import read_status, show
from dat_ray.reporting.collect import collect
from tests.unit.damage import SEEDS, Damage, damaged_bytes, damaged_json, fuzz
from tests.unit.models.published import write_checkpoint
from tests.unit.models.tiny import CHATML, make_model, make_tokenizer, save_folder
from tests.unit.reporting.synthetic_run import finished_run, recipe

LENGTHS = pytest.mark.parametrize("examples", [25, pytest.param(2000, marks=pytest.mark.drill)])
YAML = ["[1,2]", "{a: 1}", "*a", "&a [*a]", "1e999", ".nan", "!!set {a}", "~"]
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM"}


class Outcomes:
    """How often a reader gave values, and how often one line."""

    def __init__(self) -> None:
        self.values, self.refusals = 0, 0

    @contextlib.contextmanager
    def values_or_one_line(self) -> Iterator[None]:
        """Lets errors for people pass; anything else fails the test."""
        try:
            yield
        except DatError as error:
            check(str(error), 3000)
            self.refusals += 1
        else:
            self.values += 1


def check(message: str, limit: int) -> None:
    assert message.isprintable(), repr(message)
    message.encode()
    assert len(message) < limit, message


def try_files(
    path: Path, read: Callable[[], object], examples: int, damage: Damage = damaged_json, *, forgiving: bool = False
) -> None:
    """Reads a file as it is, which gives values, and damaged in many ways, some of which a reader refuses.

    Args:
        path: an undamaged file.
        read: reads it.
        examples: ways to damage it.
        damage: makes one.
        forgiving: the reader leaves out what it cannot read, and refuses nothing.
    """
    whole, outcomes = path.read_bytes(), Outcomes()
    read()

    @fuzz(examples)
    @given(SEEDS)
    def each(seed: int) -> None:
        path.write_bytes(damage(whole, seed))
        with outcomes.values_or_one_line():
            read()

    try:
        each()
    finally:
        path.write_bytes(whole)
    assert bool(outcomes.refusals) is not forgiving, f"{outcomes.refusals} refusals"


@LENGTHS
def test_recipes(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    loaders: list[tuple[str, Callable[[str], object]]] = [("demo", load_recipe), ("chat-infill", load_adapt_config)]
    for name, load in loaders:
        text = recipe_text(name, "recipes" if name == "demo" else "adaptations")
        # JSON is YAML, so that values can be replaced one by one; the text as it is, byte by byte.
        path.write_text(json.dumps(yaml.safe_load(text), default=str))
        try_files(path, partial(load, str(path)), examples)
        path.write_text(text)
        try_files(path, partial(load, str(path)), examples, damaged_bytes)


@LENGTHS
def test_overrides_and_grids(examples: int) -> None:
    recipes, sweeps = Outcomes(), Outcomes()
    fields = st.sampled_from(["seed", "target.model", "behaviors", "sampler.prompt_tokens", "judge.threshold", "a..b", "", "x.y"])
    # Most of them are refused wherever they stand; small numbers are taken by some fields.
    values = st.one_of(st.text(max_size=30), st.sampled_from(YAML), st.sampled_from(["1", "[4,8]"]))

    @fuzz(examples)
    @given(fields, values)
    def each(field: str, value: str) -> None:
        with recipes.values_or_one_line():
            load_recipe("demo", [f"{field}={value}"])
        with sweeps.values_or_one_line():
            read_sweep("demo", [], [f"{field}={value}"])

    each()
    for outcomes in (recipes, sweeps):
        assert outcomes.values > 0
        assert outcomes.refusals > 0


@pytest.fixture(scope="module")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished_run(tmp_path_factory.mktemp("run")).root


@LENGTHS
@pytest.mark.parametrize(
    "name",
    [
        "run.json", "candidates/round-0/_manifest.json", "training_set/round-0/_manifest.json",
        "evaluation/default/metrics.json", "evaluation/default/_manifest.json", "training/round-0/metrics.jsonl",
        "logs/stages.jsonl", "logs/events-1.jsonl",
    ],
)  # fmt: skip
def test_files_of_a_run(name: str, examples: int, run_root: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(run_root, root)
    path = root / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        event = {"event": "progress", "time": 1.0, "stage": "generate", "state": "running", "done": 1, "total": 2, "unit": "rows"}
        path.write_text("\n".join(json.dumps(event | {"per_second": 1.0, "note": "x", "seconds": one}) for one in (1, 2)))

    def read() -> None:
        show(read_status(str(root)))
        if name == "run.json":
            open_to_read(str(root))
        elif name.endswith("_manifest.json"):
            read_table(str(path.parent))
        elif not name.startswith("logs/events"):
            collect(recipe(), open_to_read(str(root))[0])

    try_files(path, read, examples, forgiving=name.startswith("logs/events"))


@LENGTHS
def test_replay_records(examples: int, run_root: str, tmp_path: Path) -> None:
    root = tmp_path / "default"
    shutil.copytree(Path(run_root) / "evaluation" / "default", root)
    path = root / rescore.RECORD
    if not path.exists():
        path.write_text(json.dumps({"suite": "default", "models": {"base": "w"}, "recipe": recipe().model_dump(mode="json")}))
    try_files(path, lambda: rescore.read_record(str(root)), examples)


@LENGTHS
@pytest.mark.parametrize(
    "name",
    ["jailbreak_artifact.json", "test_case_completions.json", "past_tense.json", "submitted.json", "prompts_by_id.jsonl"],
)
def test_files_of_prompts(name: str, examples: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes((Path(__file__).parent / "data" / "cases" / name).read_bytes())

    def read() -> None:
        found = read_prompts(PromptFile(path=str(path)), "evaluation.prompts.0")
        check(str(match_prompts(found, {"Bird": "Name a bird", "2": "Name a tree"})), 3000)
        json.dumps([[row.prompt, row.completion, row.variant] for row in found.rows], ensure_ascii=False).encode()

    try_files(path, read, examples)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer()
    return Path(save_folder(make_model(len(tokenizer)), tokenizer, tmp_path / "model"))


@LENGTHS
def test_config_of_a_model(examples: int, model: Path) -> None:
    def read() -> None:
        model_fingerprint(str(model))
        refuse_quantized(str(model), json.loads((model / "config.json").read_text()))
        load_model_config(str(model))

    try_files(model / "config.json", read, examples)


@LENGTHS
def test_config_of_a_published_sampler(examples: int, tmp_path: Path) -> None:
    folder = tmp_path / "llada"
    write_checkpoint(folder, "llada")

    def read() -> None:
        # What is whole again is not converted: that is another test's.
        if "auto_map" not in (folder / "config.json").read_text(errors="replace"):
            (folder / "tokenizer.json").unlink(missing_ok=True)
        resolve_sampler(str(folder))

    try_files(folder / "config.json", read, examples)


@LENGTHS
def test_spec_of_a_sampler(examples: int, tmp_path: Path) -> None:
    spec = {"mask_token_id": 3, "shift": 1, "banned_token_ids": [1, 2], "layout": "chat", "before": [1], "between": [2, 3]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"dat_sampler": spec, "architectures": ["DatMaskedLlama"]}))

    def read() -> None:
        SamplerSpec.read(tmp_path)

    try_files(path, read, examples)


@LENGTHS
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(name: str, examples: int, model: Path) -> None:
    try_files(model / name, lambda: load_tokenizer(str(model)), examples)


@LENGTHS
def test_adapters(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(ADAPTER))
    try_files(path, lambda: read_adapter_settings(str(tmp_path)), examples)


@LENGTHS
def test_headers_of_weights(examples: int, model: Path) -> None:
    path = model / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")

    def damage(data: bytes, seed: int) -> bytes:
        if seed % 3 == 0:
            return damaged_bytes(data[: 8 + length], seed)
        header = damaged_json(data[8 : 8 + length], seed)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]

    try_files(path, lambda: stored_tensors(str(model)), examples, damage)


@LENGTHS
def test_templates(examples: int) -> None:
    outcomes = Outcomes()
    assert "hi" in ChatTemplate(make_tokenizer(CHATML), TemplateConfig()).prompt("hi")

    @fuzz(examples)
    @given(SEEDS)
    def each(seed: int) -> None:
        text = damaged_bytes(CHATML.encode(), seed).decode(errors="replace")
        with outcomes.values_or_one_line():
            ChatTemplate(make_tokenizer(text), TemplateConfig()).prompt("hi")

    each()
    assert outcomes.refusals > 0


ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"completion_tokens": 3},
}


@LENGTHS
def test_answers_of_an_endpoint(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EndpointConfig(url="http://localhost:1/v1", retries=0)
    model = EndpointModel(TargetConfig(model="m", backend="endpoint", endpoint=config))
    answered: set[bool] = set()

    @fuzz(examples)
    @given(SEEDS, st.sampled_from([200, 200, 200, 204, 301, 400, 429, 500, 599, 999]))
    def each(seed: int, status: int) -> None:
        body = damaged_json(json.dumps(ANSWER).encode(), seed)
        headers = {"content-type": "application/json", "location": "http://[::1", "retry-after": "x" * (seed % 3)}
        transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body, headers=headers))
        monkeypatch.setattr(model, "_client", lambda: httpx.AsyncClient(transport=transport))
        for row in model.complete(["hi"], 4):
            assert isinstance(row, Completion)
            check(row.error or "", 500)
            answered.add(row.error is None)

    each()
    assert answered == {True, False}
