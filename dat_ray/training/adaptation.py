"""Turns a causal LM into a masked-diffusion prompt in-painter: a LoRA, or every weight, trained on masked prompts.

The network stays the same but for two things: attention becomes bidirectional, and an unused token becomes MASK.
The next-token shift is kept (the state at i-1 predicts token i), so the pre-trained head needs no relearning.
`Adaptation.update` reads top to bottom; loop, optimizer and checkpoints are those of `trainer`. A resumed run equals an
undisturbed one: batches and masks are functions of (seed, step). Several workers share each batch by rows; their gradients
add up to those of one, but for rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from dat_ray.config.adapt import AdaptConfig
from dat_ray.config.section import leaves
from dat_ray.data.checkpoints import list_checkpoints
from dat_ray.data.shards import write_bytes
from dat_ray.data.stored import stored_object, well_formed
from dat_ray.diffusion.objective import ConditionalGain, conditional_gain, corrupt, loss_and_backward, share_of
from dat_ray.diffusion.pairs import EncodedPair, batch_indices
from dat_ray.errors import InputError
from dat_ray.models.adapters import save_adapter
from dat_ray.models.folders import replace_folder
from dat_ray.training.checkpoint import Checkpoints, FolderCheckpoints
from dat_ray.training.trainer import (
    SINGLE_WORKER,
    Diverged,
    Schedule,
    Trainer,
    TrainerSettings,
    TrainingFiles,
    WorkerInfo,
)
from dat_ray.training.update_metrics import METRICS, MetricsLog

# What is counted: from 1, in the curve and in the names of checkpoints.
UNIT = "step"
CHECKPOINTS, RESULT = "checkpoints", "result.json"
# Of checkpoints that version 0.1 wrote.
_EARLIER_CHECKPOINTS = r"step-\d{7}"


@dataclass(frozen=True)
class PairSplit:
    """Clean canvases from `encode_pairs`; no prompt in both parts (see `split_pairs`).

    Attributes:
        train: at least one.
        heldout: at least two.
    """

    train: Sequence[EncodedPair]
    heldout: Sequence[EncodedPair]


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation produced.

    Attributes:
        model: the trained model, in evaluation mode: a PEFT model, or with method ``full`` the model itself.
        metrics: JSON lines of the curve, one object an optimizer step, keyed by `step`.
        before, after: held-out measurements on all held-out rows, before the first and after the last step; None on all
            workers but the first.
        seconds: wall clock of this call.
    """

    model: nn.Module
    metrics: Path
    before: ConditionalGain | None
    after: ConditionalGain | None
    seconds: float


def trainable(model: nn.Module, config: AdaptConfig) -> nn.Module:
    """The model with what is trained marked so: a fresh LoRA on all linear layers but the head, or every weight.

    The adapter's start depends on `config.seed` only.

    Raises:
        InputError: every weight is to be trained, but they are in half precision.
    """
    if config.method == "full":
        halves = sorted({str(p.dtype) for p in model.parameters() if p.dtype != torch.float32})
        if halves:
            raise InputError("training.method", "full", f"small updates would vanish in {halves[0]}: load the weights in float32")
        return model.requires_grad_()
    if isinstance(model, PeftModel):
        return model
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return get_peft_model(cast(PreTrainedModel, model), lora_of(config))


def lora_of(config: AdaptConfig) -> LoraConfig:
    """The adapter that method ``lora`` trains."""
    return LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def adapt(
    model: nn.Module,
    pairs: PairSplit,
    config: AdaptConfig,
    out_dir: str | Path,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[int, str], None] | None = None,
    worker: WorkerInfo = SINGLE_WORKER,
) -> AdaptResult:
    """Trains the adapter, or every weight, from the newest checkpoint that is not damaged, where there is one.

    Args:
        model: a `*ForCausalLM`, or a PEFT model whose trainable parameters are the adapter's.
        pairs: to train on, and held out.
        config: see `AdaptConfig`.
        out_dir: local folder, gets `checkpoints/step-*`, `metrics.jsonl` and `result.json`; see `save_adapted`.
        checkpoints: of several workers; None for those of one process.
        progress: called as ``progress(steps_done, note)`` after every step.
        worker: of several that run this together with equal arguments.

    Raises:
        InputError: too few pairs or rows; or the checkpoint in `out_dir` belongs to another configuration or other pairs.
        Diverged: a loss or gradient is not finite. The last checkpoint stays.
    """
    if len(pairs.train) == 0 or len(pairs.heldout) < 2:
        raise InputError("pairs", (len(pairs.train), len(pairs.heldout)), "give at least 1 training and 2 held-out rows")
    if config.batch_size < worker.world:
        raise InputError("training.batch_size", config.batch_size, f"give each of the {worker.world} workers at least one row")
    started, root = time.monotonic(), Path(out_dir)
    root.mkdir(parents=True, exist_ok=True)
    _refuse_earlier_version(root)
    adaptation = Adaptation(trainable(model, config), pairs, config, measures=worker.rank == 0)
    trainer = adaptation.make_trainer(worker)
    files = TrainingFiles(
        AdaptationIdentity.of(config, pairs),
        checkpoints or FolderCheckpoints(root / CHECKPOINTS, UNIT),
        MetricsLog(str(root), key=UNIT, first=1) if worker.rank == 0 else None,
        None if progress is None else lambda metrics: progress(metrics[UNIT], curve_note(metrics)),
    )
    start = trainer.restore(files)
    before = _measured_once(root / "before.json", adaptation) if worker.rank == 0 else None
    adaptation.model.train()
    try:
        trainer.run(adaptation, files, start)
    finally:
        if files.log:
            files.log.close()
    adaptation.model.eval()
    after = None
    if before is not None:
        after = _measured_once(root / "after.json", adaptation)
        _write(root / RESULT, {"before": summary(before), "after": summary(after), "config": config.model_dump()})
    return AdaptResult(adaptation.model, root / METRICS, before, after, time.monotonic() - started)


class Adaptation:
    """The masked-diffusion loss of prompts given their responses, as an `Objective`.

    Args:
        model: of `trainable`; changed in place, by the trainer.
        pairs: to train on, and to measure on.
        config: batches, masks, evaluation.
        measures: whether this worker measures held-out pairs.
    """

    def __init__(self, model: nn.Module, pairs: PairSplit, config: AdaptConfig, measures: bool = True) -> None:
        assert config.mask_token_id is not None, "the caller chooses one for its tokenizer"
        self.model, self.pairs, self.config, self.measures = model, pairs, config, measures
        self.mask_token_id = config.mask_token_id
        self._lengths = [len(pair.ids) for pair in pairs.train]

    def make_trainer(self, worker: WorkerInfo = SINGLE_WORKER) -> Trainer:
        """The trainer of the model's trainable parameters."""
        config = self.config
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=config.weight_decay)
        settings = TrainerSettings(
            schedule=Schedule(config.steps, config.learning_rate, config.warmup),
            max_grad_norm=config.max_grad_norm,
            checkpoint_every=config.checkpoint_every,
            seed=config.seed,
        )
        return Trainer(parameters, optimizer, settings, worker)

    def update(self, trainer: Trainer, update: int) -> dict[str, Any]:
        """One optimizer step on one batch; `update` counts from 0, the metrics' `step` from 1."""
        config, worker, clock = self.config, trainer.worker, time.monotonic()
        chosen = batch_indices(self._lengths, config.batch_size, config.pool_batches, config.seed, update)
        batch = corrupt(
            [self.pairs.train[i] for i in chosen],
            config.seed,
            update,
            self.mask_token_id,
            config.response_mask_share,
            config.response_cut_share,
            config.loss_weight,
        )
        share = share_of(batch, worker.rank, worker.world)
        device = next(self.model.parameters()).device

        def backward(_scale: float) -> Tensor:
            return torch.tensor([loss_and_backward(self.model, share, config.logit_chunk)], dtype=torch.float64, device=device)

        def check(sums: list[float]) -> None:
            if not math.isfinite(sums[0]):
                raise _diverged(update, "loss", sums[0])

        taken = trainer.step(update, backward, check, partial(_diverged, update))
        done, seconds = update + 1, time.monotonic() - clock
        metrics = {UNIT: done, "loss": taken.sums[0], "gradient_norm": taken.gradient_norm, "learning_rate": taken.learning_rate}
        metrics |= {"masked_tokens": len(batch.labels), "canvas_tokens": int(batch.valid.sum())}
        if self.measures and done % config.evaluate_every == 0 and done < config.steps:
            metrics |= summary(self.measure(self.pairs.heldout[: config.evaluation_rows]))
        return metrics | {"seconds": round(seconds, 3)}

    def measure(self, pairs: Sequence[EncodedPair]) -> ConditionalGain:
        """How much held-out pairs' responses help to predict their prompts."""
        return conditional_gain(self.model, pairs, self.mask_token_id, self.config.batch_size, self.config.logit_chunk)


def _diverged(update: int, term: str, value: float) -> Diverged:
    return Diverged(update + 1, term, value, "lower training.learning_rate or raise training.warmup", unit=UNIT)


@dataclass(frozen=True)
class AdaptationIdentity:
    """What a checkpoint must agree with: the settings on which weights depend, and a hash of the pairs.

    Attributes:
        stored: both, by name.
    """

    stored: Mapping[str, Any]

    @classmethod
    def of(cls, config: AdaptConfig, pairs: PairSplit) -> AdaptationIdentity:
        texts = json.dumps([[pair.ids for pair in part] for part in (pairs.train, pairs.heldout)])
        settings = {name: leaf.value for name, leaf in leaves(config) if leaf.changes_rows}
        return cls({**settings, "pairs": hashlib.sha256(texts.encode()).hexdigest()[:16]})

    def check(self, stored: Any, folder: Path) -> None:
        """See `RunIdentity`. A setting that the checkpoint does not know has its default there."""
        defaults = {name: leaf.default for name, leaf in leaves(AdaptConfig()) if leaf.changes_rows}
        free = AdaptConfig.model_fields.keys() - defaults.keys()
        there = defaults | {name: value for name, value in dict(stored).items() if name not in free}
        names = there.keys() | self.stored.keys()
        differ = sorted(name for name in names if there.get(name) != self.stored.get(name))
        if differ:
            raise InputError("resume", str(folder), f"the run there differs in {', '.join(differ)}: name a new folder")


def _refuse_earlier_version(root: Path) -> None:
    names = list_checkpoints(str(root / CHECKPOINTS), _EARLIER_CHECKPOINTS)
    if names:
        remedy = "version 0.1 wrote this checkpoint, under another warm-up and in another form: name a new folder"
        raise InputError("resume", str(root / CHECKPOINTS / names[-1]), remedy)


def curve_note(metrics: Mapping[str, Any]) -> str:
    """A row of the curve in words."""
    return f"loss {metrics['loss']:.2f}" + (f", gain {metrics['gain']:.3f} nats/token" if "gain" in metrics else "")


def summary(gain: ConditionalGain) -> dict[str, float]:
    """The figures of a measurement without its rows."""
    return {"own": gain.own, "other": gain.other, "gain": gain.gain, "low": gain.low, "high": gain.high}


def save_adapted(model: nn.Module, out_dir: str | Path, base_fingerprint: str) -> Path:
    """Saves what was trained, replacing the folder as a whole.

    Args:
        model: of `AdaptResult`.
        out_dir: of `adapt`; gets `adapter/`, or with method ``full`` the whole model as `model/`.
        base_fingerprint: `model_fingerprint` of the model that was adapted.

    Returns:
        The folder.
    """
    if isinstance(model, PeftModel):
        folder = Path(out_dir) / "adapter"
        save_adapter(model, str(folder), base_fingerprint)
        return folder
    folder = Path(out_dir) / "model"
    with replace_folder(folder) as scratch:
        cast(PreTrainedModel, model).save_pretrained(str(scratch))
    return folder


def _measured_once(path: Path, adaptation: Adaptation) -> ConditionalGain:
    """A measurement, kept so that a resumed run, which could not repeat that of the untouched model, still has it."""
    if not path.exists():
        _write(path, dataclasses.asdict(adaptation.measure(adaptation.pairs.heldout)))
    saved = stored_object(str(path), finite=False)
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    with well_formed(str(path)):
        return ConditionalGain(**fields)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes(str(path), json.dumps(value, indent=1).encode())
