"""Small tokenizers of the kinds that published chat models have, and chat templates of their forms, made on the spot."""

from __future__ import annotations

import functools
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "USER: How are you today? I have 12 of them. ASSISTANT: Sure, here you are, 12 of them. It is so.",
    "[INST] what (and when)? 2 plus 2 [/INST] Sure, here is how. <|user|> hello <|assistant|> I will not. <<SYS>> <</SYS>>",
    "You are a helpful assistant. The quick brown fox jumps over the lazy dog. A chat between a user and an assistant.",
]
CONTROL = ("<unk>", "<s>", "</s>")
# Beside what is learned: a piece that a template's bracket may join, and runs of spaces, as SentencePiece has them.
JOINING, SPACES = [("]", "(")], [("▁", "▁"), ("▁▁", "▁▁")]

# Of Llama 2's form: a space stands before a message and before a response, and both are stripped.
LLAMA2 = (
    "{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Of Mistral's: no space before a response.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('only user and assistant') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
# The same with a space at the end of the generation prompt, as attacks' own templates have it.
SPACED = MISTRAL.replace("' [/INST]'", "' [/INST] '")
# Of Zephyr's: markers that are plain text, then a line break.
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Of Vicuna's: one line of plain text.
VICUNA = (
    "{{ bos_token + 'A chat between a user and an assistant.' }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ ' USER: ' + m['content'] }}{% else %}{{ ' ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
# Of Phi 3's: control tokens that take the space behind them along.
PHI3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
FORMS = {"llama2": LLAMA2, "mistral": MISTRAL, "spaced": SPACED, "zephyr": ZEPHYR, "vicuna": VICUNA}
KINDS = ("normalizer", "legacy", "first", "unigram", "byte-level", "byte-level-prefix", "no-prefix", "Llama", "Llama-legacy")


@functools.cache
def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in the style of SentencePiece: a piece has no space but at its start."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    learned.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=330, show_progress=False))
    content = learned.get_vocab()
    merges = [*JOINING, *_merges(learned), *SPACES]
    tokens = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(content, key=content.__getitem__)]
    tokens += [left + right for left, right in JOINING + SPACES]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def make_kind(kind: str, template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer of one of `KINDS` with a chat template.

    `normalizer` is how Llama 2, Mistral, Vicuna and Zephyr are stored: a space before the start and behind every control
    token. `legacy` and `first` do it with a pre-tokenizer, `first` at the start alone; `Llama` and `Llama-legacy` are the
    library's own class for them.
    """
    vocabulary, merges = _pieces()
    options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind.startswith("Llama"):
        made = LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=kind == "Llama-legacy", **options)
        made.chat_template = template
        return made
    if kind.startswith("byte-level"):
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("prefix"))
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = [AddedToken(token, special=True, normalized=False) for token in CONTROL]
        trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        raw.train_from_iterator(CORPUS * 4, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template, **options)
    if kind == "unigram":
        scores = [(token, 0.0 if token in CONTROL else -9.0 - (len(token) == 1) + len(token)) for token in vocabulary]
        scores = [(token, -20.0 if token.startswith("<0x") else score) for token, score in scores]
        raw = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    else:
        raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        replace = normalizers.Replace(" ", "▁")
        if kind == "normalizer":
            raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        elif kind == "no-prefix":
            raw.normalizer = replace
        else:
            scheme = "always" if kind == "legacy" else kind
            raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [] if kind == "no-prefix" else [decoders.Strip(content=" ", left=1)]
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template, **options)
