"""Which layers of a model a LoRA adapts, and how: read off the layers that PEFT itself makes, before any weight is loaded.

PEFT wraps more than linear layers, each by its own rule: embeddings, the fused weights of experts, quantized layers, and
variants such as DoRA. Here only `nn.Linear` and GPT-2's transposed `Conv1D` are known, of which W + scale * B A is right;
tests hold that against PEFT's own merge.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import peft
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from dat_ray.errors import InputError
from dat_ray.models.loading import first_line


@dataclass(frozen=True)
class LoraLayer:
    """An adapted layer.

    Attributes:
        rank: r.
        scale: of B A: alpha / r, or alpha / sqrt(r) with rank-stabilized LoRA, with the rank and alpha of this layer.
        inputs, outputs: A is (rank, inputs), B is (outputs, rank).
        transposed: the weight is stored as (inputs, outputs).
    """

    rank: int
    scale: float
    inputs: int
    outputs: int
    transposed: bool


def lora_layers(
    config: PreTrainedConfig, lora: peft.LoraConfig, field: str, value: object, remedy: str = "name linear layers such as q_proj"
) -> dict[str, LoraLayer]:
    """Name of each module that `lora` adapts in a causal LM of this configuration -> its layer.

    Args:
        config: of the base model.
        lora: which layers, and how.
        field, value, remedy: what chose the layers, and what to do instead, for an error.

    Raises:
        InputError: no such layers, or one of a kind that is neither trained nor merged here.
    """
    plain = copy.deepcopy(lora)
    # Only the layers matter here. Dropout would make PEFT fail on experts before they can be named.
    plain.init_lora_weights, plain.lora_dropout = True, 0.0
    try:
        # What PEFT has to say of these layers it says again where it adapts the model itself.
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            base = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
            model = peft.get_peft_model(base, plain)
    except ValueError as error:
        raise InputError(field, value, f"cannot be adapted ({first_line(error)}): {remedy}") from error
    tied = base.get_output_embeddings() if getattr(config, "tie_word_embeddings", False) else None
    found = {}
    for path, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        name = path.removeprefix("base_model.model.")
        layer = module.get_base_layer()
        if type(module) is not LoraLinear or type(layer) not in (nn.Linear, Conv1D) or module.lora_variant:
            raise InputError(
                field, value, f"adapts {name} ({type(layer).__name__}), for which only PEFT knows the rule: {remedy}"
            )
        if module is tied:
            raise InputError(field, value, f"adapts {name}, which is tied to the embedding and not stored: {remedy}")
        (rank,), (scale,) = module.r.values(), module.scaling.values()
        found[name] = LoraLayer(rank, scale, module.in_features, module.out_features, module.fan_in_fan_out)
    return found
