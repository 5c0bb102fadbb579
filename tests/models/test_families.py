"""Every published family writes the same prompts under the literal law, the torch sampler and vLLM.

Tiny random checkpoints in the published formats; an engine takes seconds to start, so each family has one, and one recipe.
"""

from __future__ import annotations

import pytest

from dat_ray.config.models import SamplerConfig
from dat_ray.diffusion.canvas import SamplerSpec, build_canvas
from dat_ray.diffusion.law import Law
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.factory import build_sampler
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.models.samplers import resolve_sampler
from tests.unit.diffusion.literal_law import literal_infill
from tests.unit.models.published import TINY, write_checkpoint

pytestmark = pytest.mark.slow

# A converted LLaDA and iLLaDA are both Llama folders: one engine stands for them, and for A2D Llama. The same holds for
# Dream, DreamOn and A2D Qwen2, for CoDA, dQwen3 and A2D Qwen3, and for LLaDA-MoE and RND1, but for the shift, which the
# pooler applies and both samplers of Llama's layout test; of the last pair both are served, for RND1 shares its gates out.
SERVED = ("llada", "dream", "a2d_qwen3", "llada_moe", "rnd1")
# Each shift once: the others are drills.
FIRST = ("llada", "dream")
REQUESTS = [
    InfillRequest(f"row{i}", "Sure, here is how you " + "are " * (i % 4), (3, 5, 8)[i % 3], seed)
    for i, seed in enumerate([0, 1, 2**63 - 1, 77, 77, 4242])
]


@pytest.fixture(scope="module")
def samplers(tmp_path_factory) -> dict[str, str]:
    """Converted folder of each family."""
    root = tmp_path_factory.mktemp("published")
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAT_CACHE", str(root / "cache"))
        for family in TINY:
            write_checkpoint(root / family, family)
            folders[family] = resolve_sampler(str(root / family))
    return folders


def recipe(folder: str, backend: str) -> SamplerConfig:
    return SamplerConfig(
        model=folder, backend=backend, dtype="float32", layout=SamplerSpec.read(folder).layout, prompt_tokens=(3, 5, 8),
        steps=4, max_target_tokens=16, batch_size=4, max_batched_tokens=128,
    )  # fmt: skip


def literal(folder: str) -> list[tuple[int, ...]]:
    """The tokens of the law written out, the rows left out that rounding decides."""
    config = recipe(folder, "torch")
    model, tokenizer, spec = load_causal_lm(folder, "float32"), load_tokenizer(folder), SamplerSpec.read(folder)
    rows = []
    for request in REQUESTS:
        canvas = build_canvas(tokenizer, spec, request.target, request.prompt_tokens, config.max_target_tokens)
        done = literal_infill(
            model, list(canvas.ids), range(*canvas.prompt_span), range(*canvas.condition_span), seed=request.seed,
            law=Law(config.steps, order=config.order), banned=list(spec.banned_token_ids),
            mask=spec.mask_token_id, shift=spec.shift,
        )  # fmt: skip
        rows.append(() if done.undecided else tuple(done.tokens))
    assert sum(bool(row) for row in rows) >= len(rows) - 2, "too many rows hang on rounding to compare anything"
    return rows


def agree(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert not other or one.token_ids == other, one.row_id


@pytest.mark.parametrize("family", TINY)
def test_the_torch_sampler_follows_the_literal_law(samplers, family):
    agree(build_sampler(recipe(samplers[family], "torch"), threads=1).infill(REQUESTS), literal(samplers[family]))


@pytest.mark.parametrize("family", [pytest.param(one, marks=() if one in FIRST else pytest.mark.drill) for one in SERVED])
def test_vllm_follows_the_literal_law(samplers, family, vllm_process):
    agree(build_sampler(recipe(samplers[family], "vllm"), threads=1).infill(REQUESTS), literal(samplers[family]))
