"""Tokenizers of the families in miniature, trained on a few sentences and saved in the files in which the hub has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "system user assistant model prompter USER: ASSISTANT: [INST] [/INST] <<SYS>> <|user|>\n<|assistant|>\n<think>\n</think>",
    "Tell me how to bake bread with 12 eggs, please. How are you today? Please answer me in one short sentence.",
    "Sure, here is how you bake bread: take flour and water. I can't help with that. I'm sorry, but I can't.",
    "A chat between a curious user and an assistant. You are a helpful assistant. The quick brown fox jumps over a lazy dog.",
    "What is the capital of France? Paris is a fine city. Write a poem about the sea, and count: 0 1 2 3 4 5 6 7 8 9.",
    "Please, answer.\n\nHow?\nHow are you?\n\nSo.\n",
)
# What pairs are merged within: letters with the space in front, one digit, white space, signs; since Llama 3 and Qwen, with
# the line breaks behind them.
WORDS = r" ?\p{L}+|\p{N}|\s+| ?[^\s\p{L}\p{N}]+"
WORDS_WITH_BREAKS = WORDS + r"\n*"
# As SentencePiece cuts by script: no piece joins letters with signs, digits or line breaks.
SCRIPTS = Regex(r"▁?\p{L}+|\p{N}|\n|▁?[^\s\p{L}\p{N}▁]|▁+")
METASPACE = "▁"
NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True)
class TokenizerFiles:
    """What the tokenizer of a model folder consists of.

    Attributes:
        write: puts the tokenizer's own files into a folder.
        config: entries of tokenizer_config.json.
    """

    write: Callable[[Path], None]
    config: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, chat_template: str) -> None:
        """Writes the tokenizer's files and the template, as a file of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        self.write(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(self.config), encoding="utf-8")
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def byte_level(
    special: Sequence[str],
    words: str = WORDS,
    *,
    plain: Sequence[str] = (),
    normalizer: normalizers.Normalizer | None = None,
    bos: str | None = None,
    **config: Any,
) -> TokenizerFiles:
    """Byte-level BPE, as GPT-2 has it.

    Args:
        special: tokens behind the vocabulary.
        words: pattern of what pairs are merged within.
        plain: further tokens of their own, which are not marked as special.
        normalizer: of the text.
        bos: with which plain text begins, as in Llama 3.
        config: entries of tokenizer_config.json.
    """

    def write(folder: Path) -> None:
        tokenizer = Tokenizer(models.BPE())
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        split = pre_tokenizers.Split(Regex(words), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=256 + 140 + len(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
        if bos is not None:
            number = tokenizer.token_to_id(bos)
            tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
        tokenizer.save(str(folder / "tokenizer.json"))

    return TokenizerFiles(write, {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config})


def metaspace(
    special: Sequence[AddedToken | str] = (), *, plain: Sequence[str] = (), prepend: bool = True, **config: Any
) -> TokenizerFiles:
    """SentencePiece's BPE in a tokenizer.json: spaces are written as a sign, what has no piece as bytes.

    Args:
        special: behind `<unk>`, `<s>` and `</s>`, which have the ids 0, 1, 2.
        plain: further tokens of their own, which are not marked as special.
        prepend: whether the normalizer puts a space before a text, as Llama's does and Gemma's does not.
        config: entries of tokenizer_config.json.
    """

    def write(folder: Path) -> None:
        names = [str(config.get(name, default)) for name, default in NAMED.items()]
        vocabulary, merges = _merges_of_sentences()
        tokens = dict.fromkeys([*names, *(f"<0x{byte:02X}>" for byte in range(256)), *vocabulary])
        tokenizer = Tokenizer(
            models.BPE(
                vocab={token: number for number, token in enumerate(tokens)},
                merges=merges,
                unk_token=names[0],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        spaces = normalizers.Replace(" ", METASPACE)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(METASPACE), spaces]) if prepend else spaces
        if not prepend:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        steps = [decoders.Replace(METASPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
        added = [AddedToken(token, special=True, normalized=False) if isinstance(token, str) else token for token in special]
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        tokenizer.add_special_tokens(added)
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
        bos = names[1]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.save(str(folder / "tokenizer.json"))

    return TokenizerFiles(write, {"add_bos_token": True, "clean_up_tokenization_spaces": False, **NAMED, **config})


def sentencepiece(**config: Any) -> TokenizerFiles:
    """A tokenizer.model alone, which transformers converts when it loads it."""

    def write(folder: Path) -> None:
        import sentencepiece as spm

        with (folder / "tokenizer.model").open("wb") as file:
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(CORPUS * 4),
                model_writer=file,
                model_type="bpe",
                vocab_size=400,
                byte_fallback=True,
                character_coverage=1.0,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                split_digits=True,
                minloglevel=2,
            )

    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "pad_token": "<unk>"}
    return TokenizerFiles(write, {**settings, **NAMED, **config})


def _merges_of_sentences() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges over the corpus with spaces as signs; no piece holds a sign in its middle."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend(METASPACE), normalizers.Replace(" ", METASPACE)])
    trained.pre_tokenizer = pre_tokenizers.Split(SCRIPTS, behavior="isolated")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=240, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]
