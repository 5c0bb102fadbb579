"""A training that dies at a named point: in the reduction of its gradients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Killed(BaseException):
    """Not an Exception: nothing in the loop may catch it."""


def killer(calls: int) -> Callable[[Tensor], None]:
    """A reduction that dies at its n-th call, which is in the middle of an update."""
    left = [calls]

    def reduce(_tensor: Tensor) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return reduce
