"""The data of an adaptation: pairs read, split and encoded, alike in every process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dat_ray.config.adapt import AdaptRecipe, PairsConfig
from dat_ray.diffusion.pairs import ChatSegments, encode_pairs, read_pairs, split_pairs
from dat_ray.models.chat import prompt_segments
from dat_ray.models.loading import load_tokenizer
from dat_ray.training.adaptation import PairSplit


@dataclass(frozen=True)
class Prepared:
    """Data of an adaptation, the same in every process that works on it.

    Attributes:
        tokenizer, segments: of the model, and its fixed canvas tokens.
        split: clean canvases, to train on and held out.
        pairs: rows before the split.
    """

    tokenizer: PreTrainedTokenizerBase
    segments: ChatSegments
    split: PairSplit
    pairs: int


def prepare(model_folder: str, recipe: AdaptRecipe, pairs_file: Path) -> Prepared:
    """Reads, splits and encodes the pairs."""
    rows = read_pairs(str(pairs_file), PairsConfig())
    train, heldout = split_pairs(rows, recipe.heldout_share, recipe.rows_per_prompt)
    tokenizer = load_tokenizer(model_folder)
    segments = chat_segments(tokenizer, recipe)
    limits = (recipe.max_prompt_tokens, recipe.max_response_tokens)
    encoded, kept = (encode_pairs(tokenizer, segments, side, *limits) for side in (train, heldout))
    return Prepared(tokenizer, segments, PairSplit(encoded, kept), len(rows))


def chat_segments(tokenizer: PreTrainedTokenizerBase, recipe: AdaptRecipe) -> ChatSegments:
    """The fixed tokens of the canvas: the chat template's, or the recipe's own opening."""
    before, between = prompt_segments(tokenizer)
    if recipe.canvas_opening is not None:
        before = tokenizer(recipe.canvas_opening, add_special_tokens=False).input_ids
    return ChatSegments(tuple(before), tuple(between))
