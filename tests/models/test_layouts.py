"""vLLM's likelihoods of a trained target are those of the torch backend, for the layouts that it serves on a CPU.

vLLM reads the merged folder, torch the base and its adapter: what is trained is what is served.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from dat_ray.engines.factory import build_target
from dat_ray.engines.torch_target import TorchTarget
from tests.unit.layouts.builders import SERVED
from tests.unit.layouts.cases import HARMFUL, RETAIN, make_case

# An engine takes seconds to start. The published recipes' frequencies; windows, norms on queries and two kinds of layers in one.
# The others differ from these in what the table of layouts holds against transformers.
FIRST = ("gemma3",)
# Of the layouts of another row, with another tokenizer.
SAME_WEIGHTS = ("zephyr", "vicuna")
# Gemma 2 cannot be trained, but it can be asked.
SCORED = [*(name for name in SERVED if name not in SAME_WEIGHTS), "gemma2"]
ROWS = [(prompt, response) for prompt, *responses in [*HARMFUL, *RETAIN] for response in responses]


@pytest.fixture
def engine_alone(vllm_process: None) -> Iterator[None]:
    """Takes an engine down behind a test: a process holds one at a time."""
    from vllm.distributed import cleanup_dist_env_and_memory

    yield
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FIRST else pytest.mark.drill) for name in SCORED])
def test_vllm_scores_as_torch_does(name: str, engine_alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the copy with the adapter's weights goes.
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))
    case = make_case(name, tmp_path)
    prompts, responses = zip(*ROWS, strict=True)
    # Torch first: where vLLM runs transformers' own classes, it changes them for the whole process.
    untrained, reference = (
        TorchTarget(case.target, case.folder, 1, adapter).logprob(prompts, responses) for adapter in (None, case.adapter)
    )
    assert reference != pytest.approx(untrained, abs=0.05)
    config = case.target.model_copy(update={"model": case.folder, "backend": "vllm", "kv_cache_gib": 0.02})
    served = build_target(config, 1, case.adapter)
    # Merged weights are rounded once more, and vLLM multiplies in another order.
    assert served.logprob(prompts, responses) == pytest.approx(reference, abs=1e-4)
