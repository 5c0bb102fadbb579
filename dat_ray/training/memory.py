"""How much GPU memory an update needs, by arithmetic.

Measured once: Llama-3-8B's shape at DAT's sizes took 29.4 GB on an H200, where this says 28.8 (benchmarks/).

Per token and decoder layer the backward pass keeps, in bytes of a 2-byte dtype, the norms' inputs and outputs, queries, keys
and values, attention's output, gate, up, their activation and product: 2 (4 D + 2 Q + 2 K + 4 F). PEFT keeps an adapter's inputs
in float32: 4 (2 D + Q + F). With activation checkpointing a layer keeps its input alone, 2 D, and one layer at a time the rest.

D width, F width of the MLP, K width of keys (and of values), Q width of queries, most often D, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LlamaShape:
    """A Llama-like model.

    Attributes:
        layers, width, hidden, keys, vocabulary: layers, D, F, K, V.
        tied: the head is the embedding matrix.
        queries: Q; None where it is D.
    """

    layers: int
    width: int
    hidden: int
    keys: int
    vocabulary: int
    tied: bool = False
    queries: int | None = None

    @property
    def query_width(self) -> int:
        """Q."""
        return self.queries or self.width

    @property
    def decoder_parameters(self) -> int:
        """Of all layers; a token costs twice as many operations."""
        D, F, K, Q = self.width, self.hidden, self.keys, self.query_width
        return self.layers * (2 * D * Q + 2 * D * K + 3 * D * F)

    @property
    def head_parameters(self) -> int:
        """Of the output head; a token whose logits are wanted costs twice as many operations."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All weights but the norms'."""
        return self.decoder_parameters + (1 if self.tied else 2) * self.head_parameters

    def lora_parameters(self, rank: int) -> int:
        """Of an adapter on all linear layers: rank * (inputs + outputs) each."""
        D, F, K, Q = self.width, self.hidden, self.keys, self.query_width
        return self.layers * rank * (2 * (D + Q) + 2 * (D + K) + 3 * (D + F))


LLAMA3_8B = LlamaShape(layers=32, width=4096, hidden=14336, keys=1024, vocabulary=128_256)
QWEN25_14B = LlamaShape(layers=48, width=5120, hidden=13824, keys=1024, vocabulary=152_064)


def update_bytes(
    shape: LlamaShape, *, rank: int, rows: int, tokens: int, response: int, checkpointing: bool = False
) -> dict[str, int]:
    """Peak memory of an update by part, in bytes: 2-byte weights, a float32 adapter with AdamW.

    Args:
        shape: of the model.
        rank: of the adapter.
        rows: sequences that are in a backward pass at once: twice the harmful rows of a micro batch, or its retain rows.
        tokens: of a sequence.
        response: response tokens of a sequence, the only ones with logits.
        checkpointing: of activations.

    Returns:
        `weights`, `adapter` (with gradient and both moments), `activations`, `logits` (a float32 copy, its log-softmax, the
        teacher's, and the gradient), `perturbation` (with its gradient and the step's copy), and their sum, `total`.
    """
    D, F, K, Q = shape.width, shape.hidden, shape.keys, shape.query_width
    layer = 2 * (4 * D + 2 * Q + 2 * K + 4 * F) + 4 * (2 * D + Q + F)
    kept = shape.layers * 2 * D + layer if checkpointing else shape.layers * layer
    parts = {
        "weights": 2 * shape.parameters,
        "adapter": 16 * shape.lora_parameters(rank),
        "activations": rows * tokens * kept,
        "logits": 4 * 4 * rows * response * shape.vocabulary,
        "perturbation": 3 * 4 * rows * tokens * D,
    }
    return {**parts, "total": sum(parts.values())}
