"""vLLM's Qwen3-MoE with bidirectional attention, which vLLM 0.32 gives its Llama, Qwen2 and Qwen3 only."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.model_executor.layers.attention.encoder_only_attention import EncoderOnlyAttention
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM


class BidirectionalQwen3Moe(Qwen3MoeForCausalLM):
    """Every attention of the stock model exchanged for an encoder-only one of the same shape, before weights are loaded."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # vLLM finds the attention of a layer by its name, which only one may bear.
        registered = vllm_config.compilation_config.static_forward_context
        for layer in self.model.layers[self.model.start_layer : self.model.end_layer]:
            block = layer.self_attn
            name = block.attn.layer_name
            del registered[name]
            block.attn = EncoderOnlyAttention(
                block.num_heads,
                block.head_dim,
                block.scaling,
                num_kv_heads=block.num_kv_heads,
                cache_config=vllm_config.cache_config,
                quant_config=vllm_config.quant_config,
                prefix=name,
            )
