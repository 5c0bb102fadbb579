"""What both backends of the sampler share: tokenizer, law and layout, checked against the recipe, and the fingerprint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dat_ray.config.models import SamplerConfig
from dat_ray.data.control import control_strings, take_out
from dat_ray.diffusion.canvas import Canvas, SamplerSpec, build_canvas, decode_prompt
from dat_ray.diffusion.law import Law
from dat_ray.engines.base import InfillRequest, InfillResult
from dat_ray.errors import InputError
from dat_ray.models.identity import sampler_fingerprint, weights_of
from dat_ray.models.loading import load_tokenizer


@dataclass(frozen=True)
class SamplerSetup:
    """A sampler without its weights.

    Attributes:
        tokenizer: of the sampler.
        spec: mask, layout and bans.
        law: of the recipe.
        max_target_tokens: responses are cut to this many tokens.
        longest_prompt: masks of the longest prompt that the recipe asks for.
        steps_per_call: see `infill_canvases`.
        fingerprint: of the weights and the law, see `sampler_fingerprint`.
    """

    tokenizer: PreTrainedTokenizerBase
    spec: SamplerSpec
    law: Law
    max_target_tokens: int
    longest_prompt: int
    steps_per_call: int
    fingerprint: str

    @classmethod
    def read(cls, config: SamplerConfig, folder: str) -> SamplerSetup:
        """Reads a sampler folder for a recipe.

        Args:
            config: of the sampler.
            folder: local folder of a sampler, with `dat_sampler` in its config.json.

        Raises:
            InputError: no sampler folder, a layout other than the one it was trained with, or control tokens in the prefix.
        """
        spec = SamplerSpec.read(folder)
        if spec.layout != config.layout:
            raise InputError("sampler.layout", config.layout, f"{config.model} was trained with layout {spec.layout}: set that")
        if spec.layout == "answer":
            spec = dataclasses.replace(spec, answer_prefix=config.answer_prefix)
        tokenizer = load_tokenizer(folder, "sampler.model")
        written = take_out(config.answer_prefix, control_strings(tokenizer, ""))
        if spec.layout == "answer" and written != config.answer_prefix:
            remedy = "is read as plain text, with its control tokens as letters: write it without them, or use layout chat"
            raise InputError("sampler.answer_prefix", config.answer_prefix, remedy)
        law = Law(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Law)})
        return cls(
            tokenizer=tokenizer,
            spec=spec,
            law=law,
            max_target_tokens=config.max_target_tokens,
            longest_prompt=max(config.prompt_tokens),
            steps_per_call=config.steps_per_call,
            fingerprint=sampler_fingerprint(config, weights_of(config.model, "sampler.model", config.revision)),
        )

    def canvases(self, requests: Sequence[InfillRequest]) -> list[Canvas]:
        """The canvas of each request.

        Raises:
            InputError: an empty target, or a prompt longer than the recipe's longest.
        """
        for request in requests:
            if request.prompt_tokens > self.longest_prompt:
                raise InputError(
                    "sampler.prompt_tokens", request.prompt_tokens, f"the sampler was set up for at most {self.longest_prompt}"
                )
        return [self._canvas(request.target, request.prompt_tokens) for request in requests]

    def results(
        self, requests: Sequence[InfillRequest], done: Sequence[tuple[tuple[int, ...], float, int]]
    ) -> list[InfillResult]:
        """Names and decodes what `infill_canvases` wrote for the requests."""
        return [
            InfillResult(request.row_id, decode_prompt(self.tokenizer, ids), ids, logprob, nfe)
            for request, (ids, logprob, nfe) in zip(requests, done, strict=True)
        ]

    def longest_canvas(self) -> int:
        """Tokens of the longest canvas that a request can need."""
        return len(self._canvas("word " * self.max_target_tokens, self.longest_prompt).ids)

    def _canvas(self, target: str, prompt_tokens: int) -> Canvas:
        return build_canvas(self.tokenizer, self.spec, target, prompt_tokens, self.max_target_tokens)
