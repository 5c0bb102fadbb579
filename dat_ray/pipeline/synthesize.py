"""Pairs for the adaptation without any data set: a chat model writes prompts, then answers them.

Given only the opening of its user turn, a chat model continues with what users ask it. Row i is determined by the
seed and i, so that a run that was stopped continues where it was.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dat_ray.config.adapt import SynthesisConfig
from dat_ray.data.control import plain_ids
from dat_ray.data.stored import stored_object, well_formed
from dat_ray.engines.vllm_env import prepare, start_engine
from dat_ray.models.chat import prompt_segments
from dat_ray.models.loading import load_tokenizer
from dat_ray.models.tokenizer_forms import TokenizerForms
from dat_ray.progress import Progress

# Prompts shorter or longer than this are fragments or rambling.
PROMPT_CHARACTERS = (12, 180)
PROMPT_WORDS = 4
CONTEXT_TOKENS = 256


def openers(config: SynthesisConfig, index: int) -> tuple[str, str]:
    """The words that row `index` begins its prompt and its response with."""
    draw = random.Random(f"{config.seed}:{index}")
    return draw.choice(config.prompt_openers), draw.choice(config.response_openers)


def usable(prompt: str, finished: bool) -> bool:
    """Whether a written prompt is one whole request on one line, in ASCII and without control strings."""
    low, high = PROMPT_CHARACTERS
    one_line = "\n" not in prompt and "<|" not in prompt and prompt.isascii()
    return finished and one_line and low <= len(prompt) <= high and len(prompt.split()) >= PROMPT_WORDS


def synthesize(model: str, config: SynthesisConfig, out: Path, threads: int) -> None:
    """Writes pairs as JSON lines {index, prompt, response} to `out`, continuing what is there.

    Args:
        model: folder or hub id of a chat model.
        config: what to write.
        out: the file; beside it, `OUT.done` says how many rows have been begun and how long the file was then.
        threads: OpenMP threads on a CPU.
    """
    begun = _written(out)
    if begun >= config.rows:
        return
    prepare(threads)
    from vllm import SamplingParams

    tokenizer = load_tokenizer(model)
    pieces = TokenizerForms(tokenizer)
    before, between = prompt_segments(tokenizer)
    engine = start_engine(model, kv_cache_gib=1.0, dtype=config.dtype, max_model_len=CONTEXT_TOKENS, max_num_seqs=128)

    def generate(prompts: Sequence[list[int]], parameters: Sequence[Any]) -> list[Any]:
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        return [answer.outputs[0] for answer in engine.generate(inputs, parameters, use_tqdm=False)]

    with Progress("pairs", config.rows, unit="prompts") as progress, open(out, "a", encoding="utf-8") as lines:
        for low in range(begun, config.rows, config.chunk):
            rows = range(low, min(low + config.chunk, config.rows))
            first, second = zip(*(openers(config, index) for index in rows), strict=True)
            sampling = [
                SamplingParams(
                    temperature=config.temperature,
                    top_k=config.top_k,
                    seed=config.seed * 100_000 % 2**31 + index,
                    max_tokens=config.prompt_tokens,
                    stop_token_ids=[tokenizer.eos_token_id],
                    detokenize=False,
                )
                for index in rows
            ]
            written = generate([[*before, *plain_ids(tokenizer, text)] for text in first], sampling)
            prompts = []
            for index, opener, reply, answer in zip(rows, first, second, written, strict=True):
                text = (opener + pieces.text(answer.token_ids, continued=True)).strip()
                if usable(text, answer.finish_reason == "stop"):
                    prompts.append((index, text, reply))
            greedy = SamplingParams(
                temperature=0.0, max_tokens=config.response_tokens, stop_token_ids=[tokenizer.eos_token_id], detokenize=False
            )
            contexts = [
                [*before, *plain_ids(tokenizer, text), *between, *plain_ids(tokenizer, reply)] for _, text, reply in prompts
            ]
            answers = generate(contexts, [greedy] * len(contexts))
            for (index, text, reply), answer in zip(prompts, answers, strict=True):
                response = (reply + pieces.text(answer.token_ids, continued=True)).strip()
                if not response:  # a model may answer nothing, and a pair has two texts
                    continue
                lines.write(json.dumps({"index": index, "prompt": text, "response": response}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            partial = _mark(out).with_suffix(".partial")
            partial.write_text(json.dumps({"rows": rows[-1] + 1, "bytes": lines.tell()}), encoding="utf-8")
            os.replace(partial, _mark(out))
            progress.update(rows[-1] + 1, f"{len(prompts)} of the last {len(rows)} kept")


def _mark(out: Path) -> Path:
    return out.with_name(out.name + ".done")


def _written(out: Path) -> int:
    """Rows begun so far; what was written after the last whole chunk is cut off."""
    if not _mark(out).exists():
        out.write_bytes(b"")
        return 0
    path = str(_mark(out))
    with well_formed(path):
        mark = stored_object(path)
        with open(out, "r+b") as stream:
            stream.truncate(mark["bytes"])
        return int(mark["rows"])
