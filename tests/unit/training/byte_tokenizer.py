"""A real tokenizer that has one token a byte, made on the spot."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Turns `U:...` and `A:...`, each closed by the special token; `ENDLESS` closes none.
TURNS = (
    "{% for m in messages %}{{ 'U:' if m['role'] == 'user' else 'A:' }}{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
ENDLESS = TURNS.replace("<|end|>", "")


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a byte, `<|end|>` as its special token, and this chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = template
    return tokenizer
