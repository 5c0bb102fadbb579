"""Turns a causal LM into a masked-diffusion prompt in-painter: a LoRA, or every weight, trained on masked prompts.

The network stays the same but for two things: attention becomes bidirectional, and an unused token becomes MASK.
The next-token shift is kept (the state at i-1 predicts token i), so the pre-trained head needs no relearning.
The step reads top to bottom in `adapt`. A resumed run equals an undisturbed one: batches, masks and the schedule are
functions of (seed, step), and a checkpoint holds what is trained and the optimizer's moments. Several processes share each
batch by rows; their gradients add up to those of one process, but for rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dat_ray.config.adapt import AdaptConfig
from dat_ray.config.section import leaves
from dat_ray.data.checkpoints import drop_checkpoints, list_checkpoints, load_newest, read_sealed, save_at, seal
from dat_ray.data.stored import stored_object, well_formed
from dat_ray.diffusion.objective import ConditionalGain, conditional_gain, corrupt, loss_and_backward, share_of
from dat_ray.diffusion.pairs import EncodedPair, batch_indices
from dat_ray.errors import DamagedCheckpoint, InputError, StorageError
from dat_ray.json_text import parse_object

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process computes.

    Attributes:
        rank, world: this process, of how many; process 0 measures and writes, in a folder that all can read.
        add_up: sums a tensor over the processes, in place.
    """

    rank: int = 0
    world: int = 1
    add_up: Callable[[Tensor], None] = lambda tensor: None


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation produced.

    Attributes:
        model: the trained model, in evaluation mode: a PEFT model, or with method ``full`` the model itself.
        saved: folder of the PEFT adapter, or of the whole model's weights.
        metrics: JSON lines of the curve, one object an optimizer step or evaluation, keyed by `step`.
        before, after: held-out measurements on all held-out rows, before the first and after the last step.
        seconds: wall clock of this call.
    """

    model: nn.Module
    saved: Path
    metrics: Path
    before: ConditionalGain
    after: ConditionalGain
    seconds: float


def learning_rate(config: AdaptConfig, step: int) -> float:
    """Rate of a step (from 0): linear rise over the warm-up, then a cosine that reaches 0 just after the last step."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (config.steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


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
        return get_peft_model(model, lora_of(config))


def lora_of(config: AdaptConfig) -> LoraConfig:
    """The adapter that method ``lora`` trains."""
    return LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def adapt(
    model: nn.Module,
    train: Sequence[EncodedPair],
    heldout: Sequence[EncodedPair],
    config: AdaptConfig,
    out_dir: str | Path,
    progress: Callable[[int, str], None] | None = None,
    resume: bool = False,
    share: Share = Share(),
) -> AdaptResult:
    """Trains the adapter, or every weight.

    Args:
        model: a `*ForCausalLM`, or a PEFT model whose trainable parameters are the adapter's.
        train, heldout: clean canvases from `encode_pairs`; no prompt in both (see `split_pairs`).
        config: see `AdaptConfig`.
        out_dir: gets `checkpoints/step-*`, `metrics.jsonl`, `result.json` and `adapter/`.
        progress: called as ``progress(steps_done, note)`` after every step.
        resume: continue from the newest checkpoint, or start when there is none.
        share: of several processes that run this together with equal arguments.

    Raises:
        InputError: no pairs; `out_dir` already holds a run and `resume` is off; or its checkpoint belongs to another
            configuration or other pairs.
        StorageError: the processes do not see the same checkpoint in `out_dir`.
    """
    if len(train) == 0 or len(heldout) < 2:
        raise InputError("pairs", (len(train), len(heldout)), "give at least 1 training and 2 held-out rows")
    if config.batch_size < share.world:
        raise InputError("training.batch_size", config.batch_size, f"give each of the {share.world} workers at least one row")
    assert config.mask_token_id is not None, "the caller chooses one for its tokenizer"
    started = time.monotonic()
    run = _Run(Path(out_dir), _fingerprint(config, train, heldout), writes=share.rank == 0)
    model = trainable(model, config)
    adapter = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(adapter.values(), lr=0.0, weight_decay=config.weight_decay)
    start = run.open(adapter, optimizer, resume)
    if share.world > 1:
        _agree(start, next(iter(adapter.values())), share, out_dir)

    measured = {"mask_token_id": config.mask_token_id, "batch_size": config.batch_size, "chunk": config.logit_chunk}
    before = run.once("before", lambda: conditional_gain(model, heldout, **measured))
    probe = heldout[: config.evaluation_rows]
    lengths = [len(pair.ids) for pair in train]
    model.train()
    for step in range(start, config.steps):
        clock = time.monotonic()
        chosen = batch_indices(lengths, config.batch_size, config.pool_batches, config.seed, step)
        batch = corrupt(
            [train[i] for i in chosen],
            config.seed,
            step,
            config.mask_token_id,
            config.response_mask_share,
            config.response_cut_share,
            config.loss_weight,
        )
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_and_backward(model, share_of(batch, share.rank, share.world), config.logit_chunk)
        if share.world > 1:
            loss = _add_up(list(adapter.values()), loss, share)
        norm = float(nn.utils.clip_grad_norm_(list(adapter.values()), config.max_grad_norm, error_if_nonfinite=True))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        seconds = time.monotonic() - clock
        record = {"step": done, "loss": loss, "gradient_norm": norm, "learning_rate": rate}
        record |= {"masked_tokens": len(batch.labels), "canvas_tokens": int(batch.valid.sum())}
        if done % config.evaluate_every == 0 and done < config.steps and share.rank == 0:
            record |= _summary(conditional_gain(model, probe, **measured))
        run.log(record | {"seconds": round(seconds, 3)})
        if done % config.checkpoint_every == 0 or done == config.steps:
            run.checkpoint(done, adapter, optimizer)
        if progress is not None:
            progress(done, f"loss {loss:.2f}" + (f", gain {record['gain']:.3f} nats/token" if "gain" in record else ""))

    model.eval()
    after = run.once("after", lambda: conditional_gain(model, heldout, **measured))
    folder = run.publish(model)
    seconds = time.monotonic() - started
    run.write_json("result.json", {"before": _summary(before), "after": _summary(after), "config": config.model_dump()})
    return AdaptResult(model, folder, run.metrics, before, after, seconds)


def _agree(start: int, like: Tensor, share: Share, out_dir: str | Path) -> None:
    """Network file systems may show one process an older folder: their weights would differ from then on, unnoticed."""
    starts = torch.zeros(share.world, device=like.device)
    starts[share.rank] = start
    share.add_up(starts)
    if len(set(starts.tolist())) > 1:
        raise StorageError(f"{out_dir}: the workers see checkpoints of different steps, {starts.int().tolist()}")


def _add_up(parameters: Sequence[nn.Parameter], loss: float, share: Share) -> float:
    """Sums the gradients over the processes, in one message; returns the summed loss."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients] + [gradients[0].new_tensor([loss]).float()])
    share.add_up(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return float(flat[-1])


def _summary(gain: ConditionalGain) -> dict[str, float]:
    return {"own": gain.own, "other": gain.other, "gain": gain.gain, "low": gain.low, "high": gain.high}


def _fingerprint(config: AdaptConfig, train: Sequence[EncodedPair], heldout: Sequence[EncodedPair]) -> dict[str, Any]:
    """What a checkpoint must agree with: the settings and a hash of the pairs."""
    digest = hashlib.sha256(json.dumps([[p.ids for p in train], [p.ids for p in heldout]]).encode()).hexdigest()[:16]
    return {**{name: leaf.value for name, leaf in leaves(config) if leaf.changes_rows}, "pairs": digest}


def _differences(saved: dict[str, Any], fingerprint: dict[str, Any]) -> list[str]:
    """Settings in which a checkpoint and this run differ; one from before a setting was there has its default."""
    defaults = {name: leaf.default for name, leaf in leaves(AdaptConfig()) if leaf.changes_rows}
    free = AdaptConfig.model_fields.keys() - defaults.keys()
    before = defaults | {name: value for name, value in saved.items() if name not in free}
    return sorted(name for name in before.keys() | fingerprint.keys() if before.get(name) != fingerprint.get(name))


class _Run:
    """The files of one adaptation. A checkpoint is a folder that appears by rename, hence whole or not at all."""

    def __init__(self, root: Path, fingerprint: dict[str, Any], writes: bool) -> None:
        self.root, self.fingerprint, self.writes = root, fingerprint, writes
        self.metrics = root / "metrics.jsonl"
        self.checkpoints = root / "checkpoints"

    def open(self, adapter: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, resume: bool) -> int:
        """Loads the newest checkpoint into the adapter and optimizer, if there is one; returns the steps done."""
        if not resume and self.root.exists() and any(self.root.iterdir()):
            raise InputError("out_dir", str(self.root), "the folder is not empty: pass resume, or name a new folder")
        saved = self._saved()
        done, _ = load_newest(str(self.checkpoints), saved, lambda folder: self._load(folder, adapter, optimizer), "step")
        if not self.writes:
            return done
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        # Lines of steps that will be run again are dropped, so that every step is logged once.
        with well_formed(str(self.metrics)):
            kept = [line for line in self._lines() if parse_object(line, finite=False)["step"] <= done]
        self._replace(self.metrics, "".join(kept))
        return done

    def _lines(self) -> list[str]:
        if not self.metrics.exists():
            return []
        return [line for line in self.metrics.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]

    def _load(self, folder: Path, adapter: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        state = read_sealed(folder)
        try:
            saved, step = dict(state["fingerprint"]), int(state["step"])
            tensors = load_file(folder / "state.safetensors")
            missing = {f"{kind}.{name}" for name in adapter for kind in ("adapter", *_MOMENTS)} - tensors.keys()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
        differ = _differences(saved, self.fingerprint)
        if differ:
            raise InputError("resume", str(self.root), f"the run there differs in {', '.join(differ)}: name a new folder")
        if missing:
            raise DamagedCheckpoint(f"state.safetensors has no {min(missing)}")
        with torch.no_grad():
            for name, parameter in adapter.items():
                parameter.copy_(tensors[f"adapter.{name}"])
                moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in _MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
        return step

    def _saved(self) -> list[str]:
        return list_checkpoints(str(self.checkpoints), r"step-\d+")

    def checkpoint(self, step: int, adapter: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Writes `checkpoints/step-N` and drops all but the newest two."""
        if not self.writes:
            return
        tensors = {f"adapter.{name}": parameter.detach().cpu() for name, parameter in adapter.items()}
        for key in _MOMENTS:
            tensors |= {f"{key}.{name}": optimizer.state[parameter][key].cpu() for name, parameter in adapter.items()}

        def write(folder: Path) -> None:
            save_file(tensors, folder / "state.safetensors")
            seal(folder, {"step": step, "fingerprint": self.fingerprint})

        name = f"step-{step:07d}"
        save_at(str(self.checkpoints), name, write)
        drop_checkpoints(str(self.checkpoints), self._saved(), name)

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to the curve."""
        if not self.writes:
            return
        with open(self.metrics, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")

    def once(self, name: str, measure: Callable[[], ConditionalGain]) -> ConditionalGain:
        """A measurement, kept so that a resumed run, which could not repeat that of the untouched model, still has it."""
        if not self.writes:
            nothing = float("nan")
            return ConditionalGain(nothing, nothing, nothing, nothing, nothing, (), (), ())
        path = self.root / f"{name}.json"
        if not path.exists():
            self.write_json(path.name, dataclasses.asdict(measure()))
        saved = stored_object(str(path), finite=False)
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
        with well_formed(str(path)):
            return ConditionalGain(**fields)

    def publish(self, model: nn.Module) -> Path:
        """Writes the PEFT adapter to `adapter/`, without the path from which the base model happened to be read, or the
        whole model to `model/`."""
        name = "adapter" if isinstance(model, PeftModel) else "model"
        folder, partial = self.root / name, self.root / f"partial-{name}"
        if not self.writes:
            return folder
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(model, PeftModel):
            cast(PreTrainedModel, model).save_pretrained(str(partial))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
            return folder
        model.save_pretrained(str(partial), save_embedding_layers=False)
        path = partial / "adapter_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.update(base_model_name_or_path=None, target_modules=sorted(settings["target_modules"]))
        path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
        (partial / "README.md").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        return folder

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes a JSON file by rename."""
        if not self.writes:
            return
        self._replace(self.root / name, json.dumps(value, indent=1))

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        partial = path.with_name(f"partial-{path.name}")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
