"""Published masked diffusion checkpoints become sampler folders that compute what they computed before."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dat_ray.config.models import SamplerConfig
from dat_ray.diffusion.backbone import hidden_states, output_head
from dat_ray.diffusion.canvas import SamplerSpec, banned_ids, build_canvas
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.torch_sampler import TorchSampler
from dat_ray.engines.vllm_plugin import check_architecture
from dat_ray.errors import InputError
from dat_ray.models.convert import converted
from dat_ray.models.families import recognize
from dat_ray.models.layouts import layout_tensors
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.models.samplers import resolve_sampler
from dat_ray.models.tensor_names import layout_name, published_name
from tests.unit.models import published
from tests.unit.models.published import TINY, plain_logits, published_prediction, published_shapes, write_checkpoint

IDS = [5, 17, 300, 42, 8, 8, 120, 339, 61]

# Real checkpoints: published configuration, hub id, parameters (of the model cards), what they are converted to, mask.
REAL = {
    "LLaDA-8B-Base": ("llada", published.LLADA_8B, "GSAI-ML/LLaDA-8B-Base", 8.02e9, "llama", 126336, "answer"),
    "LLaDA-8B-Instruct": ("llada", published.LLADA_8B, "GSAI-ML/LLaDA-8B-Instruct", 8.02e9, "llama", 126336, "chat"),
    "LLaDA-1.5": ("llada", published.LLADA_8B, "GSAI-ML/LLaDA-1.5", 8.02e9, "llama", 126336, "chat"),
    "iLLaDA-8B-Base": ("illada", published.ILLADA_8B, "GSAI-ML/iLLaDA-8B-Base", 7.62e9, "llama", 5, "answer"),
    "LLaDA-MoE-Base": ("llada_moe", published.LLADA_MOE_7B, "inclusionAI/LLaDA-MoE-7B-A1B-Base", 7.36e9, "qwen3_moe", 156895,
                       "answer"),
    "Dream-7B": ("dream", published.DREAM_7B, "Dream-org/Dream-v0-Base-7B", 7.62e9, "qwen2", 151666, "answer"),
    "DreamOn-7B": ("dreamon", published.DREAMON_7B, "Dream-org/DreamOn-v0-7B", 7.62e9, "qwen2", 151666, "answer"),
    "CoDA-Base": ("coda", published.CODA_1B, "Salesforce/CoDA-v0-Base", 2.032e9, "qwen3", 151669, "answer"),
    "CoDA-Instruct": ("coda", published.CODA_1B, "Salesforce/CoDA-v0-Instruct", 2.032e9, "qwen3", 151669, "chat"),
    "dQwen3-Base": ("dqwen3", published.DQWEN3_1B, "UT-IFML/dQwen3-1.7B-Base", 1.72e9, "qwen3", 151660, "answer"),
    "RND1-Base": ("rnd1", published.RND1_30B, "radicalnumerics/RND1-Base-0910", 30.5e9, "qwen3_moe", 151669, "answer"),
    "A2D-Qwen3": ("a2d_qwen3", published.A2D_QWEN3, "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", 0.596e9, "qwen3", None, "chat"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", REAL)
def test_the_real_checkpoints_are_understood(name):
    family, config, hub_id, parameters, layout, mask, canvas = REAL[name]
    found = recognize(config, hub_id)
    assert (found.config["model_type"], found.mask_token_id or found.usual_mask_token_id, found.layout) == (layout, mask, canvas)
    assert found.shift == int(family in published.SHIFTED)
    expected = layout_tensors(found.config)
    shapes = published_shapes(family, config)
    assert {layout_name(key): shape for key, shape in shapes.items()} == expected
    assert {published_name(key, config) for key in expected} == shapes.keys()
    count = sum(torch.Size(shape).numel() for shape in expected.values())
    assert count == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize("family", TINY)
def test_a_converted_checkpoint_computes_the_published_architecture(family, tmp_path):
    tensors = write_checkpoint(tmp_path / family, family)
    folder = resolve_sampler(str(tmp_path / family))
    model = load_causal_lm(folder, "float32")
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logits = output_head(model)(hidden_states(model, ids, torch.ones_like(ids, dtype=torch.bool)))[0]
    expected = plain_logits(family, TINY[family], tensors, IDS)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


def requested(folder: str) -> SamplerConfig:
    """A recipe's sampler that sees the whole response and takes the most probable token."""
    layout = SamplerSpec.read(folder).layout
    settings = {"prompt_tokens": (1,), "steps": 1, "remask_condition": False}
    return SamplerConfig(model=folder, backend="torch", dtype="float32", layout=layout, **settings)


@pytest.mark.parametrize("family", TINY)
def test_the_sampler_reads_a_token_where_the_published_code_does(family, tmp_path):
    """One mask, one step: the token and its confidence, from the published form of each family's prediction."""
    tensors = write_checkpoint(tmp_path / family, family)
    folder = resolve_sampler(str(tmp_path / family))
    tokenizer, spec = load_tokenizer(folder), SamplerSpec.read(folder)
    [found] = TorchSampler(requested(folder), folder, threads=1).infill([InfillRequest("row", "Sure, here is how", 1, 0)])
    canvas = build_canvas(tokenizer, spec, "Sure, here is how", 1)
    ids, place, start = list(canvas.ids), canvas.prompt_span[0], None
    if family == "dqwen3":
        start, place = ids.pop(0), place - 1
        assert (start, place) == (tokenizer.convert_tokens_to_ids("<|vision_start|>"), 0), "first of all, masks follow at once"
    elif family in published.SHIFTED:
        assert place > 0, "where a family repeats its first logits, a shift is not seen"
    logits = published_prediction(family, TINY[family], tensors, ids, place, start)
    allowed = logits.clone()
    allowed[list(spec.banned_token_ids)] = -torch.inf
    assert found.token_ids == (int(allowed.argmax()),)
    assert found.logprob == pytest.approx(float(logits.log_softmax(0)[found.token_ids[0]]), abs=1e-4)
    check_architecture(folder)


def test_dqwen3_without_the_token_that_it_begins_with_is_refused(tmp_path):
    write_checkpoint(tmp_path / "dQwen3-1.7B-Base", "dqwen3")
    published.write_tokenizer(tmp_path / "dQwen3-1.7B-Base", "<|fim_middle|>", "llada")
    with pytest.raises(InputError, match=r"its tokenizer lacks <\|vision_start\|>, which dQwen3 puts before a text"):
        resolve_sampler(str(tmp_path / "dQwen3-1.7B-Base"))


def test_dreamon_never_writes_the_token_that_makes_a_canvas_longer(tmp_path):
    """Its tokenizer does not call it special, and the model wants nothing more."""
    source, config = tmp_path / "DreamOn-v0-7B", TINY["dreamon"]
    tensors = write_checkpoint(source, "dreamon")
    tokenizer, spec = load_tokenizer(resolve_sampler(str(source))), SamplerSpec.read(resolve_sampler(str(source)))
    canvas = build_canvas(tokenizer, spec, "Sure, here is how", 1)
    expand, place = config["expand_token_id"], canvas.prompt_span[0]
    assert tokenizer.convert_tokens_to_ids("<|expand|>") == expand
    assert {expand, tokenizer.eos_token_id} <= {*spec.banned_token_ids}
    assert expand not in banned_ids(tokenizer, spec.mask_token_id, config["vocab_size"])
    best = published_prediction("dreamon", config, tensors, list(canvas.ids), place).argmax()
    shard = source / json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    stored = load_file(shard)
    stored["lm_head.weight"][expand] = 20 * stored["lm_head.weight"][best]
    save_file(stored, shard, metadata={"format": "pt"})
    folder = resolve_sampler(str(source))
    [found] = TorchSampler(requested(folder), folder, threads=1).infill([InfillRequest("row", "Sure, here is how", 1, 0)])
    assert found.logprob < -10, "the model itself would have made room"
    assert expand not in found.token_ids


def test_a_folder_from_before_a_ban_is_not_used_again(tmp_path):
    """As it was converted when DreamOn was taken for Dream."""
    source = str(tmp_path / "DreamOn-v0-7B")
    write_checkpoint(Path(source), "dreamon")
    family = recognize(TINY["dreamon"], source)
    assert family.banned == (TINY["dreamon"]["expand_token_id"],)
    before = converted(source, dataclasses.replace(family, banned=()), source, "sampler.model")
    assert family.banned[0] not in SamplerSpec.read(before).banned_token_ids
    assert resolve_sampler(source) != before


@pytest.mark.parametrize("said", [None, False, True])
def test_gates_are_never_renormalized_whatever_the_configuration_says(said, tmp_path):
    """The published LLaDA-MoE code has the constant False where other code reads `norm_topk_prob`."""
    tensors = write_checkpoint(tmp_path / "llada_moe", "llada_moe")
    config = TINY["llada_moe"] | {"norm_topk_prob": said}
    (tmp_path / "llada_moe" / "config.json").write_text(json.dumps(config))
    model = load_causal_lm(resolve_sampler(str(tmp_path / "llada_moe")), "float32")
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logits = output_head(model)(hidden_states(model, ids, torch.ones_like(ids, dtype=torch.bool)))[0]
    expected = plain_logits("llada_moe", config, tensors, IDS)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", TINY)
def test_the_reference_looks_both_ways(family):
    """The plain code would agree with a causal model as well if it did not: the first logits see the last token."""
    tensors = published.random_tensors(family, TINY[family])
    one, other = (plain_logits(family, TINY[family], tensors, [*IDS[:-1], last])[0] for last in (61, 62))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("family", TINY)
def test_a_sampler_knows_its_mask_and_bans_special_tokens(family, tmp_path):
    write_checkpoint(tmp_path / family, family)
    folder = resolve_sampler(str(tmp_path / family))
    tokenizer, spec = load_tokenizer(folder), SamplerSpec.read(folder)
    mask = tokenizer.convert_tokens_to_ids(published.MASKS.get(family, "<|mask|>"))
    assert spec.mask_token_id == mask
    assert {*tokenizer.all_special_ids, spec.mask_token_id, TINY[family].get("vocab_size", 352) - 1} <= {*spec.banned_token_ids}
    canvas = build_canvas(tokenizer, spec, "Sure, here is how", 4)
    lo, hi = canvas.prompt_span
    assert canvas.ids[lo:hi] == (spec.mask_token_id,) * 4
    assert lo >= spec.shift, "a shifted model needs a token to the left of the first mask"
    assert tokenizer.decode(tokenizer("How are you today?").input_ids) == "How are you today?"


def test_base_models_get_the_answer_layout_and_instruct_models_the_chat_layout(tmp_path):
    for name, layout in (("LLaDA-8B-Base", "answer"), ("LLaDA-8B-Instruct", "chat"), ("LLaDA-1.5", "chat")):
        write_checkpoint(tmp_path / name, "llada", shards=1)
        spec = SamplerSpec.read(resolve_sampler(str(tmp_path / name)))
        assert (spec.layout, bool(spec.before), bool(spec.between)) == (layout, layout == "chat", layout == "chat")


def test_a_conversion_is_made_once_and_remembers_its_source(tmp_path, capsys, cache):
    source = tmp_path / "LLaDA-8B-Base"
    write_checkpoint(source, "llada")
    folder = Path(resolve_sampler(str(source)))
    assert folder.is_relative_to(cache)
    record = json.loads((folder / "conversion.json").read_text())
    files = sorted(source.glob("*.safetensors"))
    assert record["sha256"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert "converting" in capsys.readouterr().err
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert resolve_sampler(str(source)) == str(folder) == resolve_sampler(str(folder))
    assert (folder / "config.json").stat().st_mtime_ns == stamp
    assert "converting" not in capsys.readouterr().err
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_other_weights_are_another_sampler(tmp_path):
    write_checkpoint(tmp_path / "a" / "LLaDA-8B-Base", "llada", seed=0)
    write_checkpoint(tmp_path / "b" / "LLaDA-8B-Base", "llada", seed=1)
    assert resolve_sampler(str(tmp_path / "a" / "LLaDA-8B-Base")) != resolve_sampler(str(tmp_path / "b" / "LLaDA-8B-Base"))


def _convert_slowly(source: str, reached: str) -> None:
    from dat_ray.models import convert

    copy = convert._copy_renamed

    def slow(*arguments):
        checksum = copy(*arguments)
        Path(reached).touch()
        time.sleep(60)
        return checksum

    convert._copy_renamed = slow
    resolve_sampler(source)


def test_a_killed_conversion_leaves_no_sampler_and_the_next_one_is_whole(tmp_path, cache):
    source, reached = tmp_path / "LLaDA-8B-Base", tmp_path / "reached"
    tensors = write_checkpoint(source, "llada")
    worker = multiprocessing.get_context("fork").Process(target=_convert_slowly, args=(str(source), str(reached)))
    worker.start()
    while not reached.exists():
        assert worker.is_alive()
        time.sleep(0.02)
    worker.kill()
    worker.join()
    assert list((cache / "samplers").glob(".*.building-*")), "killed in the middle"
    assert not list((cache / "samplers").glob("[!.]*"))
    folder = resolve_sampler(str(source))
    assert not list((cache / "samplers").glob(".*.building-*"))
    weights = load_causal_lm(folder, "float32").get_input_embeddings().weight
    assert torch.equal(weights, tensors["model.transformer.wte.weight"])


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llada", {"attention_layer_norm": True}),
        ("llada", {"alibi": True}),
        ("llada", {"block_type": "sequential"}),
        ("llada", {"layer_norm_type": "default"}),
        ("llada_moe", {"shared_expert_intermediate_size": 512}),
        ("llada_moe", {"num_shared_experts": 1}),
        ("llada_moe", {"qk_layernorm": False}),
        ("dream", {"use_sliding_window": True}),
        ("llada", {"sliding_window": 128}),
        ("llada_moe", {"partial_rotary_factor": 0.5}),
        ("dream", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
        ("llada", {"final_logit_softcapping": 30.0}),
        ("dream", {"residual_multiplier": 0.22}),
        ("dream", {"attention_bias": False}),
        ("dreamon", {"use_mrope": True}),
        ("coda", {"attention_bias": True}),
        ("coda", {"hidden_act": "gelu"}),
        ("rnd1", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("rnd1", {"use_sliding_window": True}),
        ("rnd1", {"norm_topk_prob": None}),
        ("dqwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
    ],
)
def test_a_variant_with_other_arithmetic_is_refused(family, change):
    option = next(iter(change))
    with pytest.raises(InputError, match=option.replace("rope_parameters", "rope_type")):
        recognize(TINY[family] | change, "somebody/variant")


@pytest.mark.parametrize("family", ["llada", "llada_moe", "dream"])
def test_what_is_said_without_effect_is_no_variant(family):
    """The newer spelling of the rotary base, and options at values that change nothing."""
    older = TINY[family]
    newer = {key: value for key, value in older.items() if key != "rope_theta"} | {
        "rope_parameters": {"rope_type": "default", "rope_theta": older["rope_theta"]},
        "sliding_window": 128,
        "use_sliding_window": False,
        "partial_rotary_factor": 1.0,
        "logits_scaling": 1,
    }
    assert recognize(newer, "somebody/variant").config == recognize(older, "somebody/variant").config


def test_damaged_checkpoints_are_named(tmp_path, cache):
    def source(name: str, change=None) -> Path:
        write_checkpoint(tmp_path / name, "llada")
        (tmp_path / name / "config.json").write_text(json.dumps(TINY["llada"] | (change or {})))
        return tmp_path / name

    cut = source("cut")
    shard = cut / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors.* cut short"):
        resolve_sampler(str(cut))
    absent = source("absent")
    (absent / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"sampler\.model = .* lacks model-00003-of-00003\.safetensors, which its .* names"):
        resolve_sampler(str(absent))
    index = absent / "model.safetensors.index.json"
    held = {name: file for name, file in json.loads(index.read_text())["weight_map"].items() if "00003-of" not in file}
    index.write_text(json.dumps({"weight_map": held}))
    with pytest.raises(InputError, match=r"lacks \d+ tensors, the first is model\."):
        resolve_sampler(str(absent))
    with pytest.raises(InputError, match=r"has shape \(352, 64\), but its config.json says \(400, 64\)"):
        resolve_sampler(str(source("larger", {"embedding_size": 400})))
    with pytest.raises(InputError, match=r"has \d+ tensors that LLaDA does not know"):
        resolve_sampler(str(source("shallower", {"n_layers": 1})))
    assert not list((cache / "samplers").glob("[!.]*")), "a failed conversion leaves nothing"


def test_a_checkpoint_without_a_mask_is_refused_and_the_published_constant_is_the_last_resort(tmp_path):
    write_checkpoint(tmp_path / "iLLaDA-8B-Base", "illada")
    published.write_tokenizer(tmp_path / "iLLaDA-8B-Base", "<unnamed>", "illada")
    assert SamplerSpec.read(resolve_sampler(str(tmp_path / "iLLaDA-8B-Base"))).mask_token_id == 5
    write_checkpoint(tmp_path / "LLaDA-8B-Base", "llada")
    published.write_tokenizer(tmp_path / "LLaDA-8B-Base", "<unnamed>", "llada")
    with pytest.raises(InputError, match=r"has no mask token \(126336\)"):
        resolve_sampler(str(tmp_path / "LLaDA-8B-Base"))
