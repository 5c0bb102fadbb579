"""The attack's step recorded once as a CUDA graph and replayed.

At a training batch's size a GPU does a step's arithmetic faster than the host can launch its kernels one by one: an update of
Llama-3-8B's shape took twice as long for its attack without the recording (benchmarks/). The recorded kernels are those of the
plain step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dat_ray.errors import DatError

# A perturbation -> (B,) what the attack lowers, (B,) cross-entropies, and the gradient of the first's sum.
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class Replayed:
    """An evaluation whose first call runs as it is, whose second one is recorded, and whose later ones are replays.

    The first call also brings the libraries' own state into being, which must not happen in a recording. What a call
    returns is overwritten by the next one.

    Args:
        evaluate: with equal shapes at every call; reads nothing back to the host.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._called = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Evaluate`.

        Raises:
            DatError: the model does something that cannot be recorded.
        """
        if not self._called:
            self._called = True
            return self._evaluate(delta)
        if self._graph is None:
            self._input = delta.clone()
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads of this process, Ray's and NCCL's, may use the GPU meanwhile.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._found = self._evaluate(self._input)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise DatError(
                    f"the attack's step cannot be recorded as a CUDA graph ({reason}): set training.cuda_graph to false"
                ) from error
            self._graph = graph
        self._input.copy_(delta)
        self._graph.replay()
        return self._found
