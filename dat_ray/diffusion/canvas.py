"""Canvases: a masked prompt and the response it is written for, as one token sequence."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dat_ray.data.control import plain_ids
from dat_ray.data.stored import model_settings
from dat_ray.errors import InputError
from dat_ray.utf8 import clean_text

_KEY = "dat_sampler"


@dataclass(frozen=True)
class SamplerSpec:
    """What a masked diffusion model needs to be sampled from: `dat_sampler` in its folder's config.json.

    Attributes:
        mask_token_id: id of MASK.
        shift: 1 when the state at i-1 predicts token i (a model adapted from a causal one), 0 when the state at i does.
        banned_token_ids: ids that no prompt may hold: special tokens, MASK, and rows of the vocabulary without a token.
        layout: ``chat``: before, masks, between, response. ``answer``: masks, then `answer_prefix` and response.
        before, between: ids of the ``chat`` layout; see `dat_ray.diffusion.pairs.ChatSegments`.
        answer_prefix: text of the ``answer`` layout, tokenized together with the response, and like it without control tokens.
    """

    mask_token_id: int
    shift: Literal[0, 1]
    banned_token_ids: tuple[int, ...]
    layout: Literal["chat", "answer"]
    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    answer_prefix: str = "\nAnswer: "

    def __post_init__(self) -> None:
        if self.shift not in (0, 1):
            raise InputError(f"{_KEY}.shift", self.shift, "give 0 or 1")
        if self.layout not in ("chat", "answer"):
            raise InputError(f"{_KEY}.layout", self.layout, "give `chat` or `answer`")
        if self.shift and not self.before:
            raise InputError(
                f"{_KEY}.before", [], "a shifted model needs a token before the first mask: use layout `chat` or give one"
            )
        for name in ("banned_token_ids", "before", "between"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        ids = (self.mask_token_id, *self.banned_token_ids, *self.before, *self.between)
        if any(type(token) is not int or token < 0 for token in ids) or not isinstance(self.answer_prefix, str):
            raise TypeError("an id of a token is no whole number from 0, or answer_prefix no text")

    @classmethod
    def read(cls, folder: str | Path) -> SamplerSpec:
        """Reads the spec of a sampler folder.

        Raises:
            InputError: no `dat_sampler` in its config.json, or unknown or missing fields in it.
        """
        path = Path(folder) / "config.json"
        fields = model_settings(path, "sampler.model").get(_KEY) if path.is_file() else None
        if fields is None:
            remedy = f"name a sampler folder, whose config.json has `{_KEY}` (`dat adapt` and the conversions write one)"
            raise InputError("sampler.model", str(folder), remedy)
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            shown = sorted(fields) if isinstance(fields, dict) else fields
            raise InputError(f"{path}: {_KEY}", shown, f"{error}: make the sampler again, or download it again") from None

    def write(self, folder: str | Path) -> None:
        """Puts the spec into a model folder's config.json and marks the model as a bidirectional sampler."""
        path = Path(folder) / "config.json"
        config = model_settings(path, "sampler.model")
        names = [masked_architecture(name) for name in config.get("architectures", [])]
        config |= {_KEY: asdict(self), "is_causal": False, "architectures": names}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def masked_architecture(causal: str) -> str:
    """The sampler's architecture for a model's, as vLLM knows it: `LlamaForCausalLM` becomes `DatMaskedLlama`."""
    return causal if causal.startswith("DatMasked") else "DatMasked" + causal.removesuffix("ForCausalLM")


@dataclass(frozen=True)
class Canvas:
    """A token sequence with half-open spans.

    Attributes:
        ids: all tokens, prompt positions holding MASK at first.
        prompt_span: positions to write.
        condition_span: positions that the law may hide for a step. In the ``chat`` layout the response; in the
            ``answer`` layout its prefix too, as in the reference. Other tokens are always seen.
    """

    ids: tuple[int, ...]
    prompt_span: tuple[int, int]
    condition_span: tuple[int, int]


def build_canvas(tokenizer: Any, spec: SamplerSpec, target: str, prompt_tokens: int, max_target_tokens: int = 128) -> Canvas:
    """The canvas of a target response with a fully masked prompt; a special token written in the response is plain text.

    Args:
        tokenizer: of the sampler.
        spec: layout and ids.
        target: the response the prompt is for.
        prompt_tokens: K, masks.
        max_target_tokens: the response is cut to this many tokens; it ends without an end-of-turn token.

    Raises:
        InputError: an empty target or no masks.
    """
    if not target.strip():
        raise InputError("target", target, "give a response with text: the prompt is written for it")
    if prompt_tokens < 1:
        raise InputError("prompt_tokens", prompt_tokens, "give at least 1")

    masks = (spec.mask_token_id,) * prompt_tokens
    lo, hi = len(spec.before), len(spec.before) + prompt_tokens
    if spec.layout == "chat":
        response = plain_ids(tokenizer, target)[:max_target_tokens]
        start = hi + len(spec.between)
        return Canvas((*spec.before, *masks, *spec.between, *response), (lo, hi), (start, start + len(response)))
    prefix, whole = (plain_ids(tokenizer, text) for text in (spec.answer_prefix, spec.answer_prefix + target))
    condition = whole[: len(prefix) + max_target_tokens]
    return Canvas((*spec.before, *masks, *condition), (lo, hi), (hi, hi + len(condition)))


def banned_ids(tokenizer: Any, mask_token_id: int, vocabulary: int) -> tuple[int, ...]:
    """Ids that no prompt may hold: every special token, MASK, and ids without a token.

    Args:
        tokenizer: of the sampler.
        mask_token_id: id of MASK.
        vocabulary: V, rows of the output head.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {*tokenizer.all_special_ids, mask_token_id, *unused_ids(tokenizer, vocabulary)}
    return tuple(sorted(i for i in special if i < vocabulary))


def unused_ids(tokenizer: Any, vocabulary: int) -> list[int]:
    """Rows of an embedding that no token has, in order: those past the tokenizer's last, and gaps between its ids.

    How many tokens there are does not say which: where ids have gaps, the last is larger than that.
    """
    used = {*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder}
    return [i for i in range(vocabulary) if i not in used]


def decode_prompt(tokenizer: Any, token_ids: list[int] | tuple[int, ...]) -> str:
    """A prompt's text, without special tokens or outer space."""
    return clean_text(tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()
