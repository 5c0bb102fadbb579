"""The losses of adversarial fine-tuning: away, toward and retain. Plain tensors in, plain tensors out.

L = mean_rows (w_away * a + w_toward * t) + w_retain * mean_tokens r

with, in the form of DAT (arXiv 2602.15238, equations 3-5 and appendix B), a the mean log-probability of the harmful
response and t the cross-entropy of the refusal, both under the attacked prompt, and r = KL(p_0 || p_theta) on harmless
responses. CAT and CAPO (arXiv 2405.15589), MixAT (2505.16947) and LAT (2407.15549) put other terms in the same places.

Every reduction is a sum divided by a count that the caller gives: the count of the whole update. So the
sum of the workers' losses is the loss of the update, however its rows are split.

Shapes: B rows, N selected response tokens of all rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dat_ray.config.training import TrainingConfig

# What is left of a term past CAT's soft cutoff (public code). The value jumps there: the formula is not continuous.
SOFT_SLOPE = 0.001
# Of LAT's normalized retain term, on the mean over tokens and vocabulary (public code).
NORMALIZED_GUARD = 1e-8


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
    tokens = values.new_zeros(count).index_add(0, rows, torch.ones_like(values))
    # On a GPU the host would wait for the answer; there the mean of nothing is NaN, which stops an update as well.
    if not values.is_cuda:
        assert bool((tokens > 0).all()), "a row without response tokens has no mean"
    return total / tokens


def cut_off(values: Tensor, cutoff: float | None, form: str) -> Tensor:
    """A loss that need not fall below its cutoff.

    Args:
        values: (B,), to be minimized.
        cutoff: a row below this has been pushed far enough; None: no bound.
        form: `clamp`: such a row gives no gradient; `soft`: cutoff + 0.001 * value, as CAT's public code does
            with the mean of its batch (by row here, so that the loss does not depend on the split over workers).

    Returns:
        (B,).
    """
    if cutoff is None:
        return values
    if form == "clamp":
        return values.clamp(min=cutoff)
    assert form == "soft", form
    return torch.where(values < cutoff, cutoff + SOFT_SLOPE * values, values)


def token_log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """log p / (1 - p) of each target token: its logit against the logsumexp of all others.

    Both log p and log(1 - p) follow from it without a loss of digits, whichever of them is near 0.

    Args:
        logits: (N, V).
        targets: (N,) int64.

    Returns:
        (N,) float32, or float64 where the logits are.
    """
    logits, at = full_precision(logits), targets[:, None]
    return logits.gather(1, at).squeeze(1) - logits.scatter(1, at, -torch.inf).logsumexp(dim=1)


def unlikelihood(log_odds: Tensor, cutoff: float | None) -> Tensor:
    """-log(1 - p) of each token, in nats.

    Where p rounds to 1 it still grows by 1 nat a nat of the token's logit.

    Args:
        log_odds: (N,) of `token_log_odds`.
        cutoff: a token with log p below this is dropped; it still counts in a mean, as in the public codes of CAT and LAT.

    Returns:
        (N,).
    """
    losses = -F.logsigmoid(-log_odds)
    return losses if cutoff is None else torch.where(F.logsigmoid(log_odds) < cutoff, 0.0, losses)


def away_rows(logprobs: Tensor, rows: Tensor, count: int, cfg: TrainingConfig, log_odds: Tensor | None = None) -> Tensor:
    """Pushes a response down, by row.

    Args:
        logprobs: (N,) log p of its tokens.
        rows: (N,) the row of each.
        count: B.
        cfg: `away`, `away_cutoff`, `cutoff_form`.
        log_odds: (N,) of `token_log_odds`, needed by `unlikelihood` alone.

    Returns:
        (B,) mean log p(y), or mean -log(1 - p(y_t)).
    """
    if cfg.away == "unlikelihood":
        assert log_odds is not None
        return row_means(unlikelihood(log_odds, cfg.away_cutoff), rows, count)
    assert cfg.away == "neg_ce", cfg.away
    return cut_off(row_means(logprobs, rows, count), cfg.away_cutoff, cfg.cutoff_form)


def toward_rows(logprobs: Tensor, rows: Tensor, count: int, cfg: TrainingConfig) -> Tensor:
    """Pulls a response up: (B,) its cross-entropy; arguments as `away_rows`, with `toward_cutoff`."""
    return cut_off(-row_means(logprobs, rows, count), cfg.toward_cutoff, cfg.cutoff_form)


def ipo_rows(
    harmful: Tensor, refusal: Tensor, reference_margin: Tensor, rows: tuple[Tensor, Tensor], cfg: TrainingConfig
) -> Tensor:
    """CAPO's loss: the refusal's margin over the harmful response should exceed the reference's by 1 / (2 beta).

    ((lp(y_ref | x + delta) - lp(y | x + delta)) - (lp_ref(y_ref | x) - lp_ref(y | x)) - 1 / (2 beta))^2

    Args:
        harmful: (N,) log p of the harmful responses' tokens. One below `away_cutoff` is set to 0 and still counts in the mean.
        refusal: (N',) log p of the refusals' tokens. One above `-toward_cutoff` is set to 0 likewise.
        reference_margin: (B,) lp_ref(y_ref | x) - lp_ref(y | x), no gradient, unperturbed prompts.
        rows: the rows of both, each numbered from 0.
        cfg: `ipo_beta` and the cutoffs, in nats of a token.

    Returns:
        (B,).
    """
    if cfg.away_cutoff is not None:
        harmful = torch.where(harmful < cfg.away_cutoff, 0.0, harmful)
    if cfg.toward_cutoff is not None:
        refusal = torch.where(refusal > -cfg.toward_cutoff, 0.0, refusal)
    B = len(reference_margin)
    margin = row_means(refusal, rows[1], B) - row_means(harmful, rows[0], B)
    return (margin - reference_margin - 1 / (2 * cfg.ipo_beta)).square()


def harmful_loss(losses: Tensor, clip: float | None, rows_of_update: int) -> Tensor:
    """This worker's share of the mean over rows.

    Args:
        losses: (B,) weighted sum of a row's terms.
        clip: bound M of theorem 3.1 of DAT: rows outside [-M, M] give no gradient; None: no bound.
        rows_of_update: harmful rows of the update over all workers.
    """
    held = losses if clip is None else losses.clamp(-clip, clip)
    return held.sum() / rows_of_update


def kl_divergence(first_logits: Tensor, second_logits: Tensor) -> Tensor:
    """KL(first || second) at each token, in nats.

    With the model before training first it is DAT's retain term (equation 5), with it second LAT's.

    Args:
        first_logits: (N, V).
        second_logits: (N, V).

    Returns:
        (N,), zero with zero gradient where the two are equal.
    """
    first = full_precision(first_logits).log_softmax(dim=1)
    second = full_precision(second_logits).log_softmax(dim=1)
    return (first.exp() * (first - second)).sum(dim=1)


def retain_tokens(teacher_logits: Tensor | None, logits: Tensor, targets: Tensor, form: str) -> Tensor:
    """The retain term at each token, in nats.

    Args:
        teacher_logits: (N, V) of the model before training, no gradient flows into them; None for `ce`.
        logits: (N, V).
        targets: (N,) tokens of the data, which only `ce` reads.
        form: `kl_forward`, `kl_reverse` or `ce`.

    Returns:
        (N,).
    """
    if form == "ce":
        return F.cross_entropy(full_precision(logits), targets, reduction="none")
    assert teacher_logits is not None
    teacher = teacher_logits.detach()
    return kl_divergence(teacher, logits) if form == "kl_forward" else kl_divergence(logits, teacher)


def retain_loss(values: Tensor, tokens_of_update: int) -> Tensor:
    """Token mean over the retain rows.

    Args:
        values: (N,) of `retain_tokens`.
        tokens_of_update: such tokens of the update over all workers.

    Returns:
        Scalar, this worker's share.
    """
    return values.sum() / tokens_of_update


def normalized_factor(value: float, vocabulary: int) -> float:
    """What LAT's public code multiplies its retain term by: 1 / (its own value, held fixed, + a guard).

    There the value and the guard of 1e-8 are means over elements, tokens times vocabulary. Below the guard the term is
    the plain one, scaled; without it a KL that goes to 0 would keep a gradient of full size.

    Args:
        value: of the update's retain term, nats a token.
        vocabulary: V.
    """
    # Rounding can leave a KL of equal models just below 0.
    return 1.0 / (max(value, 0.0) + NORMALIZED_GUARD * vocabulary)
