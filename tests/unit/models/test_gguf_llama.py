from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dat_ray.errors import DatError
from dat_ray.models.gguf_llama import convert
from tests.unit.models.tiny import CHATML, make_model, write_gguf


@pytest.fixture(scope="module")
def converted(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gguf")
    write_gguf(root / "tiny.gguf", make_model(len(tokenizer)), tokenizer)
    (root / "out").mkdir()
    convert(root / "tiny.gguf", root / "out")
    return root / "out"


def test_weights_are_those_of_the_model_before_export(converted: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = make_model(len(tokenizer))
    kind = gguf.GGMLQuantizationType.Q8_0
    for layer in source.model.layers:
        weight = layer.mlp.down_proj.weight
        weight.data = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.detach().numpy(), kind), kind)).bfloat16().float()
    loaded = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    for (name, expected), (_, found) in zip(source.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(expected, found), name
    ids = torch.arange(40)[None]
    # Equal logits also need the same rotary base, norm epsilon and head layout.
    assert torch.equal(source(ids).logits, loaded(ids).logits)


def test_weights_are_stored_in_bfloat16(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("text", ["How are you today?", "  12 naïve 日本\n\n x 3", "<|im_start|>user\nhi<|im_end|>"])
def test_tokenizer_survives(converted: Path, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    loaded = AutoTokenizer.from_pretrained(converted)
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text
    assert loaded.chat_template == CHATML
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id) == (1, 2, 2, 0)


def test_refuses_another_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DatError, match="architecture 'qwen2' is not llama"):
        convert(tmp_path / "x.gguf", tmp_path)
