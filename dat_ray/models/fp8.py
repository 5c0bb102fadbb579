"""Linear layers in 8-bit floating point (e4m3: 4 bits of exponent, 3 of mantissa, at most 448 in size).

A weight has a scale for each of its outputs, made once; states have one for each token, made at each call, so that a row's
numbers do not depend on its batch mates. Products are `torch.nn.functional.scaled_mm`'s: on a GPU those of its tensor cores
(NVIDIA's Ada, Hopper and newer), which sum in somewhat less than float32; on a CPU a slow reference. Results are bfloat16.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
# The GPU's kernels take these multiples.
MULTIPLE = 16
# Compute capability of the first GPUs with such products: Ada.
CAPABILITY = (8, 9)
_SMALLEST = 1e-12


def lacks_products(device: torch.device) -> bool:
    """Whether it is a GPU without 8-bit products; a CPU has the reference."""
    return device.type == "cuda" and bool(torch.cuda.get_device_capability(device) < CAPABILITY)


def to_8_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row scaled so that its largest entry becomes 448, and rounded.

    Args:
        rows: (N, I), of any floating type.

    Returns:
        (N, I) in e4m3, and (N, 1) float32: the numbers to multiply it by.
    """
    wide = rows.float()
    scales = wide.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST) / LARGEST
    return (wide / scales).to(E4M3), scales


class Fp8Linear(nn.Module):
    """A linear layer of 8-bit weights and states.

    Args:
        linear: whose weight and bias it takes; inputs and outputs are multiples of 16.
        device: where it is to lie.
    """

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        weight, scales = to_8_bits(linear.weight.detach().to(device))
        self.weight = nn.Parameter(weight, requires_grad=False)  # (O, I)
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)
        self.register_parameter("bias", bias)
        self.scales: Tensor
        self.register_buffer("scales", scales.t().contiguous())  # (1, O)

    def forward(self, states: Tensor) -> Tensor:
        """(..., I) to (..., O), of the same type."""
        rows, scales = to_8_bits(states.flatten(0, -2))
        product = F.scaled_mm(
            rows,
            self.weight.t(),
            scales,
            ScalingType.RowWise,
            self.scales,
            ScalingType.RowWise,
            output_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        out = product.to(states.dtype).unflatten(0, states.shape[:-1])
        return out if self.bias is None else out + self.bias


class Quantized(NamedTuple):
    """What became of a model's layers.

    Attributes:
        layers: linear layers that are in 8 bits now.
        share: of all layers' parameters, those of these.
    """

    layers: int
    share: float


def quantize_layers(layers: nn.Module, device: torch.device) -> Quantized:
    """Puts `Fp8Linear` in the place of linear layers, one after another: no more than one is held twice.

    Plain linear layers alone, of inputs and outputs that are multiples of 16; what else there is stays as it is, such as the
    fused weights of experts.

    Args:
        layers: a model's, without embeddings and output head.
        device: where they are to lie.
    """
    replaced = numbers = 0
    for module in list(layers.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.in_features % MULTIPLE == child.out_features % MULTIPLE == 0:
                setattr(module, name, Fp8Linear(child, device))
                replaced, numbers = replaced + 1, numbers + child.weight.numel()
    return Quantized(replaced, numbers / max(1, sum(parameter.numel() for parameter in layers.parameters())))
