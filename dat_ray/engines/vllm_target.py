"""The target model served by vLLM inside this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dat_ray.config.models import TargetConfig
from dat_ray.engines import vllm_env
from dat_ray.engines.base import Completion, require_seeds
from dat_ray.engines.target_text import TargetText
from dat_ray.models.chat import Encoded


class VllmTarget:
    """Chat completions and response likelihoods from one vLLM engine.

    Args:
        config: of the target; its `model` may be a spec, `folder` is what is loaded.
        folder: model folder or hub id, an adapter already merged in.
        threads: OpenMP threads on a CPU.

    Raises:
        DatError: the engine did not start.
    """

    def __init__(self, config: TargetConfig, folder: str, threads: int) -> None:
        vllm_env.prepare(threads)
        self.name = config.model
        self._text = TargetText(config, folder)
        self._llm = start_target(config, folder)

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        prefills: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[Completion]:
        """See `TargetModel`. Sampled answers repeat with their seed, but differ from the torch backend's."""
        row_seeds = require_seeds(temperature, seeds, len(prompts))
        rows = self._text.prompt_ids(prompts, prefills, histories)
        params = [
            self._sampling(
                max_tokens=self._text.answer_budget(row, max_new_tokens),
                temperature=temperature,
                seed=None if row_seeds is None else row_seeds[i],
                stop_token_ids=list(self._text.stop_ids),
            )
            for i, row in enumerate(rows)
        ]
        outputs = self._generate(rows, params)
        begun = prefills or [""] * len(rows)
        return [self._text.completion(out.outputs[0].token_ids, prefill) for out, prefill in zip(outputs, begun, strict=True)]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """See `TargetModel`.

        Scoring usually follows the answer to the same prompt, so the prompt's blocks are read from the prefix cache.
        Positions inside cached blocks are not scored by vLLM; a row whose response reaches into one (its answer began
        with that very response) is scored once more without the cache.
        """
        rows = self._text.scored(prompts, responses)
        outputs = self._score(rows, skip_cache=False)
        again = [i for i, (row, output) in enumerate(zip(rows, outputs, strict=True)) if not _scored(row, output)]
        for i, output in zip(again, self._score([rows[i] for i in again], skip_cache=True), strict=True):
            assert _scored(rows[i], output)
            outputs[i] = output
        return [_mean_logprob(row, output) for row, output in zip(rows, outputs, strict=True)]

    def _score(self, rows: Sequence[Encoded], skip_cache: bool) -> list[Any]:
        params = self._sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0, skip_reading_prefix_cache=skip_cache)
        return self._generate([row.ids for row in rows], [params] * len(rows))

    def _sampling(self, **options: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(detokenize=False, **options)

    def _generate(self, rows: Sequence[list[int]], params: Sequence[Any]) -> list[Any]:
        if not rows:
            return []
        prompts = [{"prompt_token_ids": row} for row in rows]
        outputs: list[Any] = self._llm.generate(prompts, list(params), use_tqdm=False)
        return outputs


def start_target(config: TargetConfig, folder: str) -> Any:
    """The engine of a target: vLLM's own `LLM`, which takes and returns token ids.

    Raises:
        DatError: the engine did not start.
    """
    return vllm_env.start_engine(
        folder,
        kv_cache_gib=config.kv_cache_gib,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_batched_tokens=config.max_batched_tokens,
        max_num_seqs=config.batch_size,
        enable_prefix_caching=True,
        **vllm_env.engine_options(config),
    )


def _scored(row: Encoded, output: Any) -> bool:
    """Whether vLLM computed the logits of every response token; the one at i comes from position i-1."""
    return (output.num_cached_tokens or 0) <= row.response_span[0] - 1


def _mean_logprob(row: Encoded, output: Any) -> float:
    low, high = row.response_span
    return float(sum(output.prompt_logprobs[i][row.ids[i]].logprob for i in range(low, high)) / (high - low))
