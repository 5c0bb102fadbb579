"""A tiny random Llama with a byte-level tokenizer: in memory, as a folder and as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "user\nHow are you today?\nassistant\nSure, here is how you are today.",
    "system\nYou are a helpful assistant. The quick brown fox jumps over the lazy dog 12 times.",
]


def make_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few sentences: every text can be encoded, common words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=CONTROL[1],
        eos_token=CONTROL[2],
        pad_token=CONTROL[2],
        unk_token=CONTROL[0],
        chat_template=chat_template,
    )


def make_model(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rms_norm_eps=2**-16,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            # Far larger than the default start, so that a wrong weight is seen in the logits.
            parameter.data = (torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1)).bfloat16().float()
    return model


def save_folder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, **options: object) -> str:
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """The tiny model in the layout of llama.cpp: rotary pairs side by side, down projections in 8 bits."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[token in CONTROL] for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHATML)

    def side_by_side(weight: torch.Tensor, heads: int) -> torch.Tensor:
        return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        parts = {
            "attn_norm": state[layer + "input_layernorm.weight"],
            "attn_q": side_by_side(state[layer + "self_attn.q_proj.weight"], config.num_attention_heads),
            "attn_k": side_by_side(state[layer + "self_attn.k_proj.weight"], config.num_key_value_heads),
            "attn_v": state[layer + "self_attn.v_proj.weight"],
            "attn_output": state[layer + "self_attn.o_proj.weight"],
            "ffn_norm": state[layer + "post_attention_layernorm.weight"],
            "ffn_gate": state[layer + "mlp.gate_proj.weight"],
            "ffn_up": state[layer + "mlp.up_proj.weight"],
        }
        for name, tensor in parts.items():
            writer.add_tensor(f"blk.{i}.{name}.weight", tensor.contiguous().numpy())
        packed = gguf.quantize(state[layer + "mlp.down_proj.weight"].numpy(), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"blk.{i}.ffn_down.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
