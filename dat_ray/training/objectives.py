"""The losses of adversarial fine-tuning: away, toward and retain. Plain tensors in, plain tensors out.

L = w_away * mean_rows a + w_toward * mean_rows t + w_retain * mean_tokens KL(p_0 || p_theta)

with a the mean log-probability of the harmful response and t the cross-entropy of the refusal, both under
the attacked prompt (DAT, arXiv 2602.15238, equations 3-5 and appendix B).

Every reduction is a sum divided by a count that the caller gives: the count of the whole update. So the
sum of the workers' losses is the loss of the update, however its rows are split.

Shapes: B rows, N selected response tokens of all rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(logits: Tensor) -> Tensor:
    """At least float32: a softmax over the vocabulary in half precision loses the tail."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of each target token, in nats.

    Args:
        logits: (N, V).
        targets: (N,) int64. Every id counts, 0 included.

    Returns:
        (N,) float32, or float64 where the logits are.
    """
    logits = full_precision(logits)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)


def row_means(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Mean over each row's own tokens, so that a long response weighs no more than a short one.

    Args:
        values: (N,).
        rows: (N,) int64, the row of each value. Every row has at least one.
        count: B.

    Returns:
        (B,).
    """
    total = values.new_zeros(count).index_add(0, rows, values)
    tokens = torch.bincount(rows, minlength=count)
    assert bool((tokens > 0).all()), "a row without response tokens has no mean"
    return total / tokens


def away_loss(logprobs: Tensor, cutoff: float | None, rows_of_update: int) -> Tensor:
    """Pushes the harmful response down: the mean of its log-probability.

    Args:
        logprobs: (B,) mean log p(y) of each row, in nats.
        cutoff: a row below this has been pushed far enough and gives no gradient; None: no bound.
        rows_of_update: harmful rows of the update over all workers.

    Returns:
        Scalar, this worker's share.
    """
    held = logprobs if cutoff is None else logprobs.clamp(min=cutoff)
    return held.sum() / rows_of_update


def toward_loss(logprobs: Tensor, cutoff: float | None, rows_of_update: int) -> Tensor:
    """Pulls the refusal up: the mean of its cross-entropy.

    Args:
        logprobs: (B,) mean log p(y_ref) of each row, in nats.
        cutoff: a row whose cross-entropy is under this refuses well enough and gives no gradient; None: no bound.
        rows_of_update: harmful rows of the update over all workers.

    Returns:
        Scalar, this worker's share.
    """
    entropies = -logprobs
    held = entropies if cutoff is None else entropies.clamp(min=cutoff)
    return held.sum() / rows_of_update


def forward_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(p_0 || p_theta) at each token, in nats (DAT equation 5: the teacher comes first).

    Args:
        teacher_logits: (N, V) of the model before training; no gradient flows into them.
        student_logits: (N, V).

    Returns:
        (N,), zero with zero gradient where the two are equal.
    """
    teacher = full_precision(teacher_logits.detach()).log_softmax(dim=1)
    student = full_precision(student_logits).log_softmax(dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1)


def retain_loss(divergences: Tensor, tokens_of_update: int) -> Tensor:
    """Token mean of the divergence over the retain responses.

    Args:
        divergences: (N,) of `forward_kl`.
        tokens_of_update: retain response tokens of the update over all workers.

    Returns:
        Scalar, this worker's share.
    """
    return divergences.sum() / tokens_of_update
