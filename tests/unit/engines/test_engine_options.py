"""What of a recipe reaches `vllm.LLM`, and what a recipe may say of engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.models import TargetConfig
from dat_ray.engines import checks, vllm_env
from dat_ray.errors import InputError


def test_every_roles_engine_takes_its_share_of_the_gpus() -> None:
    config = TargetConfig(model="m", tensor_parallel=2, quantization="fp8", gpu_memory_utilization=0.3)
    assert vllm_env.engine_options(config) == {"tensor_parallel_size": 2, "quantization": "fp8", "gpu_memory_utilization": 0.3}
    assert "gpu_memory_utilization" not in vllm_env.engine_options(TargetConfig(model="m"))
    for setting in ({"tensor_parallel": 2}, {"quantization": "fp8"}, {"gpu_memory_utilization": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}.* needs backend vllm"):
            TargetConfig.model_validate({"model": "m", "backend": "torch", **setting})
    with pytest.raises(ValueError, match="revision is up to the server"):
        TargetConfig.model_validate({"model": "m", "backend": "endpoint", "endpoint": {"url": "http://x"}, "revision": "v1"})


@pytest.mark.parametrize(
    ("section", "pool", "extra"),
    [
        ("target", "target", ()),
        ("judge.reader", "judge", ("judge.name=strongreject-rubric", "judge.reader.model=m")),
        ("evaluation.attacker", "attacker", ("evaluation.attacker.model=m",)),
    ],
)
def test_an_engine_is_not_shared_over_more_gpus_than_its_actor_has(section: str, pool: str, extra: tuple[str, ...]) -> None:
    settings = [*extra, f"{section}.tensor_parallel=2"]
    with pytest.raises(InputError, match=rf"{section}\.tensor_parallel 2 exceeds cluster\.{pool}\.num_gpus"):
        load_recipe("demo", settings)
    shared = load_recipe("demo", [*settings, f"cluster.{pool}.num_gpus=2", f"{section}.gpu_memory_utilization=0.4"])
    assert fingerprint(shared) == fingerprint(load_recipe("demo", extra))


def test_a_checkpoint_that_sees_is_started_by_its_text_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(**config: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    assert vllm_env._for_text(folder(model_type="llama")) == {}
    assert vllm_env._for_text(folder(model_type="gemma3", text_config={"vocab_size": 3})) == {"language_model_only": True}
    here = {"vllm": object(), "torchvision": None}
    monkeypatch.setattr(checks, "find_spec", here.get)
    with pytest.raises(InputError, match=r"^evaluation\.attacker\.model = 'm': reads images too.* torchvision"):
        checks._can_serve_text_part("evaluation.attacker.model", "m")
    here["torchvision"] = object()
    checks._can_serve_text_part("evaluation.attacker.model", "m")
