from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dat_ray.config.adapt import AdaptConfig
from dat_ray.diffusion.objective import ConditionalGain, conditional_gain, corrupt
from dat_ray.diffusion.pairs import EncodedPair, batch_indices
from dat_ray.errors import InputError
from dat_ray.models.adapters import ADAPTER_CONFIG, ADAPTER_RECORD
from dat_ray.training.adaptation import (
    CHECKPOINTS,
    UNIT,
    AdaptResult,
    PairSplit,
    adapt,
    save_adapted,
)
from dat_ray.training.checkpoint import CheckpointWriter, FolderCheckpoints
from dat_ray.training.trainer import WorkerInfo
from tests.unit.diffusion.tiny import MASK, tiny_model

CONFIG = AdaptConfig(
    mask_token_id=MASK, steps=6, batch_size=4, pool_batches=2, rank=4, alpha=8, checkpoint_every=3, evaluate_every=4
)


def echoes(n: int, seed: int) -> list[EncodedPair]:
    """Prompts that repeat one letter, which the response names: only the response tells which."""
    letters = torch.randint(5, 13, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [EncodedPair((1, 4, a, a, a, 0, 2, a, a), (2, 5), (7, 9)) for a in letters]


def split(train: int, heldout: int, seed: int = 0) -> PairSplit:
    return PairSplit(echoes(train, seed), echoes(heldout, 1))


def own(gain: ConditionalGain | None) -> float:
    assert gain is not None
    return gain.own


def adapted(config: AdaptConfig, root: Path, pairs: PairSplit | None = None, killed_at: int | None = None) -> AdaptResult:
    """A tiny model adapted in this process, killed after a step where one is named."""
    progress = None if killed_at is None else kill_at(killed_at)
    return adapt(tiny_model(), pairs or split(20, 8), config, root, progress=progress)


class Killed(BaseException):
    """Not an Exception: nothing on the way may swallow it."""


def kill_at(step: int):
    def progress(done: int, note: str) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("killed_at", [3, 5])
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path, killed_at: int) -> None:
    whole = adapted(CONFIG, tmp_path / "whole")
    with pytest.raises(Killed):
        adapted(CONFIG, tmp_path / "cut", killed_at=killed_at)
    assert [p.name for p in (tmp_path / "cut" / CHECKPOINTS).iterdir()] == ["step-00000003"]
    assert not (tmp_path / "cut" / "result.json").exists()
    seen = []
    resumed = adapt(tiny_model(), split(20, 8), CONFIG, tmp_path / "cut", progress=lambda done, _: seen.append(done))
    assert seen == [4, 5, 6]
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (whole.before, whole.after) == (resumed.before, resumed.after)
    curves = []
    for run in (whole, resumed):
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        curves.append([{k: v for k, v in line.items() if k != "seconds"} for line in lines])
    assert curves[0] == curves[1]
    assert "gain" in curves[0][3]


def test_the_model_learns_to_read_the_response(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 60, "batch_size": 8, "learning_rate": 2e-2, "rank": 8, "alpha": 16})
    result = adapted(config, tmp_path, split(64, 16))
    losses = [json.loads(line)["loss"] for line in result.metrics.read_text().splitlines()]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert own(result.after) < 0.6 * own(result.before)
    assert result.after is not None
    assert result.after.low > 0.5
    base = {name for name, p in result.model.named_parameters() if "lora_" not in name}
    fresh = dict(tiny_model().named_parameters())
    for name in base:
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert torch.equal(dict(result.model.named_parameters())[name], fresh[plain])


def test_the_saved_adapter_is_the_model_and_names_its_base_by_fingerprint_alone(tmp_path: Path) -> None:
    result = adapted(CONFIG, tmp_path, split(12, 6))
    saved = save_adapted(result.model, tmp_path, "0123")
    loaded = PeftModel.from_pretrained(tiny_model(), saved)
    again = conditional_gain(loaded, echoes(6, 1), MASK, CONFIG.batch_size)
    assert again.own == pytest.approx(own(result.after), abs=1e-6)
    assert again.own != pytest.approx(own(result.before), abs=1e-3)
    settings = json.loads((saved / ADAPTER_CONFIG).read_text())
    assert settings["base_model_name_or_path"] is None
    assert json.loads((saved / ADAPTER_RECORD).read_text())["base_fingerprint"] == "0123"
    assert result.after is not None
    assert json.loads((tmp_path / "result.json").read_text())["after"]["gain"] == result.after.gain


@pytest.mark.parametrize("damaged", ["newest", "both"])
@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, name: str, damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.model_copy(update={"checkpoint_every": 2})
    whole = adapted(config, tmp_path / "whole")
    with pytest.raises(Killed):
        adapted(config, tmp_path / "cut", killed_at=4)
    folders = sorted((tmp_path / "cut" / CHECKPOINTS).iterdir())
    assert [folder.name for folder in folders] == ["step-00000002", "step-00000004"]
    for folder in folders if damaged == "both" else folders[1:]:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    capsys.readouterr()
    seen: list[int] = []
    resumed = adapt(tiny_model(), split(20, 8), config, tmp_path / "cut", progress=lambda done, _: seen.append(done))
    said = capsys.readouterr().err
    assert said.startswith(f"checkpoint damaged: {folders[1]} (")
    where = "starting again from step 0" if damaged == "both" else f"going on from step 2, {folders[0]}"
    assert said.endswith(f"{where}\n")
    assert seen == list(range(1 if damaged == "both" else 3, 7))
    for (key, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), key
    assert (whole.before, whole.after) == (resumed.before, resumed.after)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    adapted(CONFIG, tmp_path, split(8, 6))
    changed = CONFIG.model_copy(update={"learning_rate": 1e-2})
    with pytest.raises(InputError, match="differs in learning_rate, pairs"):
        adapted(changed, tmp_path, split(8, 6, seed=5))


def test_a_checkpoint_of_version_0_1_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS / "step-0000050").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"step-0000050.*: version 0\.1 wrote this checkpoint, under another warm-up.*: name a new folder"
    ):
        adapted(CONFIG, tmp_path)


def test_a_checkpoint_goes_on_with_other_pieces_and_from_before_a_setting_was_there(tmp_path: Path) -> None:
    adapted(CONFIG, tmp_path, split(8, 6))
    for path in tmp_path.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        # As of an earlier version: without sums and a setting that came later, with one that counted then.
        del state["run"]["loss_weight"], state["seal"], state["sha256"]
        state["run"]["logit_chunk"] = 128
        path.write_text(json.dumps(state))
    smaller = CONFIG.model_copy(update={"logit_chunk": 8, "checkpoint_every": 9})
    seen: list[int] = []
    adapt(tiny_model(), split(8, 6), smaller, tmp_path, progress=lambda done, _: seen.append(done))
    assert seen == []
    with pytest.raises(InputError, match="differs in loss_weight"):
        adapted(CONFIG.model_copy(update={"loss_weight": "inverse_rate"}), tmp_path, split(8, 6))


def test_too_few_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="held-out"):
        adapted(CONFIG, tmp_path, split(8, 1))


def test_the_learning_rates_are_the_schedules(tmp_path: Path) -> None:
    """Of 6 steps, 0.3 of them rounded up rise to the highest rate; a cosine of the other 4 follows."""
    result = adapted(CONFIG.model_copy(update={"warmup": 0.3, "learning_rate": 1e-2}), tmp_path)
    rates = [json.loads(line)["learning_rate"] for line in result.metrics.read_text().splitlines()]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([5e-3, 1e-2, 1e-2, 5e-3 * (1 + half), 5e-3, 5e-3 * (1 - half)])


class FirstWrites(FolderCheckpoints):
    """Checkpoints in a folder that two processes see."""

    def __init__(self, root: Path, rank: int) -> None:
        super().__init__(root, UNIT)
        self.rank = rank

    def save(self, updates_done: int, write: CheckpointWriter) -> None:
        if self.rank == 0:
            super().save(updates_done, write)


def _worker(rank: int, world: int, store: str, out: Path, killed_at: int | None) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    worker = WorkerInfo(rank, world, lambda tensor: torch.distributed.all_reduce(tensor))
    progress = (lambda done, _: os.kill(os.getpid(), signal.SIGKILL) if done == killed_at else None) if killed_at else None
    result = adapt(tiny_model(), split(20, 8), CONFIG, out, FirstWrites(out / CHECKPOINTS, rank), progress, worker)
    assert (result.after is None) == (rank != 0)
    if rank == 0:
        save_adapted(result.model, out, "0")
    torch.distributed.destroy_process_group()


def run_workers(out: Path, killed_at: int | None = None) -> list[int | None]:
    """Two processes; returns their exit codes."""
    # A file of its own for each run: another process may take a port that was free a moment ago.
    store = f"file://{out}-processes-{killed_at}"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_worker, args=(rank, 2, store, out, killed_at)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    return [worker.exitcode for worker in workers]


def test_two_workers_equal_one_and_survive_a_kill(tmp_path: Path) -> None:
    alone = adapted(CONFIG, tmp_path / "alone")
    assert run_workers(tmp_path / "cut", killed_at=5) == [-signal.SIGKILL] * 2
    assert not (tmp_path / "cut" / "adapter").exists()
    assert run_workers(tmp_path / "cut") == [0, 0]
    expected = load_file(save_adapted(alone.model, tmp_path / "alone", "0") / "adapter_model.safetensors")
    found = load_file(tmp_path / "cut" / "adapter" / "adapter_model.safetensors")
    for name, tensor in expected.items():
        # Gradients are added in another order; Adam's first steps magnify what rounding makes of a tiny gradient.
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("alone", "cut")
    ]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)
        assert one["masked_tokens"] == other["masked_tokens"]


def test_a_batch_too_small_for_the_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one row"):
        adapt(tiny_model(), split(8, 6), CONFIG, tmp_path, worker=WorkerInfo(0, 5))


def test_full_fine_tuning_trains_every_weight_and_saves_a_model(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"method": "full", "learning_rate": 6e-3, "steps": 16})
    with pytest.raises(Killed):
        adapted(config, tmp_path / "cut", split(64, 16), killed_at=8)
    resumed = adapted(config, tmp_path / "cut", split(64, 16))
    whole = adapted(config, tmp_path / "whole", split(64, 16))
    fresh = dict(tiny_model().named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert not torch.equal(parameter, fresh[name]), name
        assert torch.equal(parameter, dict(resumed.model.named_parameters())[name])
    assert own(whole.after) < 0.8 * own(whole.before)
    loaded = AutoModelForCausalLM.from_pretrained(save_adapted(whole.model, tmp_path, "0"), dtype=torch.float32)
    again = conditional_gain(loaded, echoes(16, 1), MASK, CONFIG.batch_size)
    assert again.own == pytest.approx(own(whole.after), abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_on_every_weight_equals_a_plain_one(tmp_path: Path, tied: bool) -> None:
    """Plain: logits of the whole model under a mask that hides nothing, cross-entropy, autograd, clipping, AdamW."""
    config = CONFIG.model_copy(update={"method": "full", "steps": 1, "warmup": 0.0, "weight_decay": 0.1, "logit_chunk": 3})
    train = echoes(20, 0)
    result = adapt(tiny_model(tied=tied), PairSplit(train, echoes(8, 1)), config, tmp_path)

    model = tiny_model(tied=tied)
    rows = [train[i] for i in batch_indices([len(row.ids) for row in train], config.batch_size, config.pool_batches, 0, 0)]
    batch = corrupt(rows, 0, 0, MASK, config.response_mask_share, config.response_cut_share)
    B, T = batch.ids.shape
    seen = batch.valid[:, None, None, :].expand(B, 1, T, T)
    logits = model(input_ids=batch.ids, attention_mask=seen).logits
    loss = torch.nn.functional.cross_entropy(logits[batch.rows, batch.positions - 1], batch.labels)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.1)
    assert config.max_grad_norm is not None
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()

    (line,) = [json.loads(line) for line in result.metrics.read_text().splitlines()]
    assert line["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert line["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    found, fresh = dict(result.model.named_parameters()), dict(tiny_model(tied=tied).named_parameters())
    for name, parameter in model.named_parameters():
        moved = (found[name] - fresh[name]).detach()
        # Adam's first step is the sign of the gradient, also of one that is all rounding.
        agrees = torch.isclose(moved, (parameter - fresh[name]).detach(), rtol=1e-2, atol=1e-6)
        assert float(agrees.float().mean()) > 0.999, name
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_every_weight_is_not_trained_in_half_precision(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"method": "full"})
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(InputError, match=rf"training\.method = 'full': small updates would vanish in {dtype}"):
            adapt(tiny_model().to(dtype), split(8, 4), config, tmp_path / str(dtype))
