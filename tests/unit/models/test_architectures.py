"""What a configuration gives away: what training would get wrong is refused before anything is paid for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from dat_ray.config.loading import load_recipe
from dat_ray.data.rundir import RunDir
from dat_ray.diffusion.backbone import hidden_states, pack_attention
from dat_ray.errors import DatError, InputError
from dat_ray.models.architectures import check_attacked_layers, check_trainable
from dat_ray.models.loading import load_causal_lm
from dat_ray.ops.doctor import diagnose
from dat_ray.pipeline.evaluations import compare
from dat_ray.pipeline.stages import check_inputs


def folder_of(tmp_path: Path, **config: object) -> str:
    """A model folder of which only the configuration is ever read."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        # A field that the file leaves out has its family's default.
        (
            {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]},
            r"Gemma2ForCausalLM changes its logits after the output head \(final_logit_softcapping = 30.0\)",
        ),
        ({"model_type": "cohere"}, r"Cohere changes its logits after the output head \(logit_scale = 0.0625\)"),
        ({"model_type": "granite", "logits_scaling": 6.0}, r"\(logits_scaling = 6.0\)"),
        ({"model_type": "falcon_h1", "lm_head_multiplier": 0.5}, r"\(lm_head_multiplier = 0.5\)"),
        ({"model_type": "mpt", "logit_scale": "inv_sqrt_d_model"}, r"\(logit_scale = inv_sqrt_d_model\)"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "lets its tokens see later ones"),
        ({"model_type": "gemma3"}, "reads more than text"),
        ({"model_type": "t5"}, "has an encoder beside its decoder"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_what_training_would_leave_out_is_refused_in_one_line(config: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        check_trainable(folder_of(tmp_path, **config), "target.model")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("target.model = ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        *({"model_type": name} for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3")),
        {"model_type": "granite", "logits_scaling": 1.0, "embedding_multiplier": 12.0},
        {"model_type": "gemma2", "final_logit_softcapping": None},
    ],
    ids=lambda config: config["model_type"],
)
def test_what_training_serves_passes(config: dict, tmp_path: Path) -> None:
    assert check_trainable(folder_of(tmp_path, **config, architectures=["AnyForCausalLM"]), "target.model") == "AnyForCausalLM"


@pytest.mark.parametrize(
    "config", [{"model_type": "qwen2", "num_hidden_layers": 3}, {"model_type": "gpt2", "n_layer": 3}], ids=["its name", "another"]
)
def test_a_layer_that_is_perturbed_is_one_of_the_model(config: dict, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **config)
    check_attacked_layers(folder, "target.model", ["embedding", 0, 2])
    with pytest.raises(InputError, match=r"training\.attack\.layers = 3: the model has layers 0 to 2: choose among them"):
        check_attacked_layers(folder, "target.model", [2, 3])


def test_a_run_does_not_begin_with_such_a_target(tmp_path: Path) -> None:
    target = folder_of(tmp_path, model_type="gemma2")
    with pytest.raises(InputError, match=r"target.model = .*final_logit_softcapping"):
        check_inputs(load_recipe("demo", [f"target.model={target}"]))
    found = {check.name: check for check in diagnose(load_recipe("demo", [f"target.model={target}"]))}
    assert not found["target model"].ok
    assert "final_logit_softcapping" in found["target model"].detail


def test_an_evaluation_with_gradients_does_not_begin_with_such_a_model(tmp_path: Path) -> None:
    other = tmp_path / "model"
    other.mkdir()
    models, run = f"other={folder_of(other, model_type='gemma2')}", RunDir(str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"--models = .*final_logit_softcapping"):
        compare(load_recipe("demo", ["evaluation.attacks=[gcg]"]), run, models, None)
    assert not Path(run.root).exists()


def test_a_cap_on_attention_is_kept_by_the_loader(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        initializer_range=0.3,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=None,
        pad_token_id=0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), "float32")
    ids = torch.tensor([[5, 9, 2, 33, 14, 7]])
    seen: dict[str, torch.Tensor] = {}
    attention = model.model.layers[0].self_attn
    attention.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.update(read=kwargs["hidden_states"], angles=kwargs["position_embeddings"]), with_kwargs=True
    )
    attention.register_forward_hook(lambda _m, _args, out: seen.update(written=out[0]))
    model(input_ids=ids)

    def turned(x: torch.Tensor) -> torch.Tensor:
        cos, sin = (angle[0] for angle in seen["angles"])
        return x * cos + torch.cat([-x[:, 16:], x[:, :16]], dim=1) * sin

    # The layer's attention written out: one head of width 32, scores held within 2, no token sees a later one.
    x = seen["read"][0]
    query, key, value = (x @ layer.weight.T for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    scores = turned(query) @ turned(key).T / 32**0.5
    assert scores.abs().max() > 4.0
    held = 2.0 * torch.tanh(scores / 2.0) + torch.full((6, 6), -torch.inf).triu(1)
    assert torch.allclose(seen["written"][0], held.softmax(1) @ value @ attention.o_proj.weight.T, atol=1e-4)


def test_a_sampler_does_not_leave_a_cap_on_attention_out() -> None:
    config = Gemma2Config(vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    model = Gemma2ForCausalLM(config)
    with pytest.raises(DatError, match="bounds its attention logits"):
        pack_attention(model)
    with pytest.raises(DatError, match="bounds its attention logits"):
        hidden_states(model, torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
