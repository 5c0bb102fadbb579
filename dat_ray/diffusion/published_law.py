"""The whole denoising law on one screen, as it is published: the reader's way into `law`, and what that is compared with.

One padded batch in lock-step, the head on every position, noise in float64; no options. It shares nothing with the sampler
but the model and, so that both write the same prompts at temperature 0, the random numbers of step a and the rule for ties.
The letters are those of `law`.

Shapes: B rows, T canvas positions of the longest row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dat_ray.diffusion.backbone import bidirectional_mask, pad_rows
from dat_ray.diffusion.canvas import Canvas, SamplerSpec
from dat_ray.diffusion.counter import integer_below, uniform
from dat_ray.diffusion.law import TIE, Law


def transfer_schedule(masks: int, steps: int) -> list[int]:
    """n_s, tokens to commit at each of min(steps, masks) steps: as equal as possible, the remainder first."""
    steps = min(steps, masks)
    quotient, remainder = divmod(masks, steps)
    return [quotient + (step < remainder) for step in range(steps)]


@torch.no_grad()
def published_infill(
    model: nn.Module, canvases: Sequence[Canvas], seeds: Sequence[int], spec: SamplerSpec, law: Law, batch_size: int
) -> list[tuple[int, ...]]:
    """Prompts for canvases, batch after batch in the order given.

    Args:
        model: a `*ForCausalLM` of transformers.
        canvases, seeds: one of each for a row.
        spec, law: with the published law's settings only, and no shift.
        batch_size: B.
    """
    assert spec.shift == 0
    device = next(model.parameters()).device
    done: list[tuple[int, ...]] = []
    for lo in range(0, len(canvases), batch_size):
        part = canvases[lo : lo + batch_size]
        ids, valid = pad_rows([list(canvas.ids) for canvas in part], spec.mask_token_id, device)
        place = torch.arange(ids.shape[1], device=device)[None]
        prompt, condition = (_span([getattr(c, name) for c in part], place) for name in ("prompt_span", "condition_span"))
        schedules = [transfer_schedule(c.prompt_span[1] - c.prompt_span[0], law.steps) for c in part]
        seed = torch.tensor(seeds[lo : lo + batch_size], device=device)
        generator = torch.Generator(device).manual_seed(0)
        for step in range(max(map(len, schedules))):
            # a. A random part of the condition is MASK, for this step only.
            seen = _hide(ids, valid, condition, seed, step, spec.mask_token_id) if law.remask_condition else ids
            # b. Logits of the canvas, with bidirectional attention.
            logits = model(input_ids=seen, attention_mask=bidirectional_mask(valid), use_cache=False).logits
            # c. x ~ softmax(logits / tau) over what is not banned, by the Gumbel-max draw; the most probable at tau = 0.
            noisy = logits.clone()
            if law.temperature > 0:
                u = torch.rand(logits.shape, dtype=torch.float64, device=device, generator=generator)
                noisy = logits.double() / law.temperature - (-u.log()).log()
            noisy[..., list(spec.banned_token_ids)] = -torch.inf
            chosen = noisy.argmax(-1)
            # d. Confidence of x without temperature, banned tokens included in the normalizer.
            confidence = logits.float().softmax(-1).gather(-1, chosen[..., None])[..., 0]
            # e. The n_s masked positions of highest confidence are committed for good.
            masked = prompt & (ids == spec.mask_token_id)
            priority = (confidence.log() / TIE).round().masked_fill(~masked, -torch.inf)
            for row, schedule in enumerate(schedules):
                if step < len(schedule):
                    best = priority[row].argsort(descending=True, stable=True)[: schedule[step]]
                    ids[row, best] = chosen[row, best]
        done += [tuple(ids[row, slice(*canvas.prompt_span)].tolist()) for row, canvas in enumerate(part)]
    return done


def _span(spans: list[tuple[int, int]], place: Tensor) -> Tensor:
    bounds = torch.tensor(spans, device=place.device)
    return (place >= bounds[:, :1]) & (place < bounds[:, 1:])


def _hide(ids: Tensor, valid: Tensor, condition: Tensor, seeds: Tensor, step: int, mask: int) -> Tensor:
    r = 1 + integer_below(valid.sum(1), seeds, step, 1)
    place = torch.arange(ids.shape[1], device=ids.device)[None]
    draws = uniform(seeds[:, None], step, 2, place).masked_fill(~valid, 2.0)
    return ids.masked_fill(condition & (draws.argsort(1).argsort(1) < r[:, None]), mask)
