"""The trainer on a fine-tuning: exact resume, replay, guards."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dat_ray.config.training import TrainingConfig
from dat_ray.data.checkpoints import STATE
from dat_ray.errors import DamagedCheckpoint, DatError
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow, rows_of_update
from dat_ray.training.checkpoint import ADAPTER, OPTIMIZER, FolderCheckpoints, RunFingerprint, load_checkpoint
from dat_ray.training.fine_tuning import TrainingRows, check_rows, count_updates, fine_tune
from dat_ray.training.network import Network
from dat_ray.training.step import make_optimizer
from dat_ray.training.trainer import SINGLE_WORKER, Diverged, Schedule, TrainingFiles, WorkerInfo
from dat_ray.training.update_metrics import MetricsLog, read_metrics
from tests.unit.training.kills import Killed, killer

MakeNetwork = Callable[..., Network]
MakeConfig = Callable[..., TrainingConfig]
RUN = "0123456789abcdef"


def train(
    network: Network, rows: TrainingRows, cfg: TrainingConfig, root: Path, *, worker: WorkerInfo = SINGLE_WORKER, run: str = RUN
) -> dict[str, Tensor]:
    log = MetricsLog(str(root))
    files = TrainingFiles(RunFingerprint(run), FolderCheckpoints(root / "checkpoints"), log)
    try:
        fine_tune(network, rows, cfg, 3, files, worker)
    finally:
        log.close()
    return {name: parameter.detach().clone() for name, parameter in network.trainable().items()}


@pytest.fixture
def rows(harmful_rows: list[HarmfulRow], retain_rows: list[Encoded]) -> TrainingRows:
    return TrainingRows(harmful_rows, retain_rows)


@pytest.mark.parametrize("fresh_optimizer", [False, True])
def test_killed_twice_and_resumed_ends_with_the_same_adapter(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path, fresh_optimizer: bool
) -> None:
    # Dropout is on, so that the random numbers have to be resumed as well.
    cfg = make_config(lora={"rank": 4, "dropout": 0.2}, fresh_optimizer=fresh_optimizer)

    def fresh() -> Network:
        return make_network(adapted=False, dropout=0.2)

    whole = train(fresh(), rows, cfg, tmp_path / "whole")
    torch.manual_seed(99)
    # Two reductions an update: killed within one of updates 1 to 3, and again within 1 to 3 of what was left.
    for calls in random.Random(0).sample(range(2, 8), 2):
        with pytest.raises(Killed):
            train(fresh(), rows, cfg, tmp_path / "torn", worker=WorkerInfo(reduce=killer(calls)))
    resumed = train(fresh(), rows, cfg, tmp_path / "torn")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(tensor.abs().max() > 0 for name, tensor in whole.items() if "lora_B" in name)

    def curve(root: Path) -> list[dict]:
        log = read_metrics(str(root))
        return [{k: v for k, v in row.items() if not k.startswith(("seconds", "cost"))} for row in log]

    assert [row["update"] for row in curve(tmp_path / "torn")] == list(range(8)), "one line an update, replays included"
    assert curve(tmp_path / "torn") == curve(tmp_path / "whole")


def test_a_finished_training_has_nothing_left_to_do(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    first = train(make_network(adapted=False), rows, make_config(updates=3), tmp_path)
    before = read_metrics(str(tmp_path))
    # A start from other weights shows that the adapter comes from the checkpoint.
    second = train(make_network(adapted=True), rows, make_config(updates=3), tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_metrics(str(tmp_path)) == before


def test_the_seed_changes_the_rows_and_nothing_else_does(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows
) -> None:
    cfg = make_config()
    one = rows.share(cfg, 3, 5, 0, 1)
    both = [rows.share(cfg, 3, 5, rank, 2) for rank in range(2)]
    key = [id(row) for row in one.harmful]
    assert sorted(key) == sorted(id(row) for part in both for row in part.harmful)
    assert {part.retain_tokens for part in both} == {one.retain_tokens}
    assert {part.harmful_count for part in both} == {4}
    assert any(
        [id(r) for r in rows.share(cfg, 4, u, 0, 1).harmful] != [id(r) for r in rows.share(cfg, 3, u, 0, 1).harmful]
        for u in range(3)
    )


def test_a_mixture_takes_each_update_from_one_pool(make_config: MakeConfig, rows: TrainingRows) -> None:
    mixed = TrainingRows(rows.harmful[:3], rows.retain, rewrites=rows.harmful[3:])
    goals, rewrites = ({id(row) for row in pool} for pool in (mixed.harmful, mixed.rewrites))
    cfg = make_config(harmful_rows=2, rewrite_share=0.3)
    drawn = [{id(row) for row in mixed.share(cfg, 3, update, 0, 1).harmful} for update in range(400)]
    assert all(pool <= goals or pool <= rewrites for pool in drawn)
    # 400 coins of 0.3: a standard deviation of 0.023.
    assert sum(pool <= rewrites for pool in drawn) / 400 == pytest.approx(0.3, abs=0.1)
    assert set().union(*drawn) == goals | rewrites
    # Each pool is walked through as if it were alone: no row is passed over, whichever updates are the other pool's.
    for table, stream in ((mixed.harmful, "harmful"), (mixed.rewrites, "rewrites")):
        own = [update for update in range(400) if drawn[update] <= {id(row) for row in table}]
        for turn, update in enumerate(own):
            expected = [id(table[i]) for i in rows_of_update(len(table), 2, 3, stream, turn)]
            assert [id(row) for row in mixed.share(cfg, 3, update, 0, 1).harmful] == expected
    for share, pool in ((0.0, goals), (1.0, rewrites)):
        cfg = make_config(harmful_rows=2, rewrite_share=share)
        assert all({id(row) for row in mixed.share(cfg, 3, update, 0, 1).harmful} <= pool for update in range(9))


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({"stop_away": -9.0}, r"away is -\d+(\.\d+)? at update \d+, past training.stop_away; the last checkpoint is kept; lower"),
        ({"stop_retain": 0.05}, r"retain_kl is 0\.\d+ at update \d+, past training.stop_retain; .* raise training.retain_weight"),
    ],
    ids=["exploding away", "collapsed retain"],
)
def test_a_guard_stops_the_run_with_its_last_good_checkpoint(
    guard: dict, message: str, make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    fast = {"learning_rate": 0.05, "updates": 40, "warmup": 0.0, "retain_weight": 0.01, "checkpoint_every": 1}
    with pytest.raises(Diverged, match=message) as caught:
        train(make_network(adapted=False), rows, make_config(**fast, **guard), tmp_path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert FolderCheckpoints(tmp_path / "checkpoints").kept()[-1] == f"update-{caught.value.update:08d}"
    assert caught.value.update >= 1


def test_the_last_checkpoint_stays_when_a_loss_is_not_a_number(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    network, calls = make_network(adapted=False), [0]

    def poison(_tensor: Tensor) -> None:
        calls[0] += 1
        if calls[0] == 10:
            next(iter(network.trainable().values())).data.fill_(float("nan"))

    with pytest.raises(Diverged, match="away is nan at update 5"):
        train(network, rows, make_config(), tmp_path, worker=WorkerInfo(reduce=poison))
    assert FolderCheckpoints(tmp_path / "checkpoints").kept()[-1] == "update-00000003"
    resumed = train(make_network(adapted=False), rows, make_config(), tmp_path)
    whole = train(make_network(adapted=False), rows, make_config(), tmp_path / "whole")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_only_the_last_two_checkpoints_are_kept(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    train(make_network(), rows, make_config(updates=7, checkpoint_every=2), tmp_path)
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert folders == ["update-00000006", "update-00000007"]
    assert json.loads((tmp_path / "checkpoints" / folders[-1] / STATE).read_text())["updates_done"] == 7


def test_a_checkpoint_of_another_run_is_refused(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    train(make_network(), rows, make_config(updates=3), tmp_path)
    with pytest.raises(DatError, match=f"is a checkpoint of run {RUN}; this is run ffff"):
        train(make_network(), rows, make_config(updates=3), tmp_path, run="ffff")


@pytest.mark.parametrize(("name", "both"), [(ADAPTER, False), (OPTIMIZER, True), (STATE, False)])
def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before(
    name: str,
    both: bool,
    make_network: MakeNetwork,
    make_config: MakeConfig,
    rows: TrainingRows,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg, root = make_config(updates=7, checkpoint_every=2), tmp_path / "torn"
    whole = train(make_network(adapted=False), rows, cfg, tmp_path / "whole")
    train(make_network(adapted=False), rows, make_config(updates=4, checkpoint_every=2), root)
    for folder in sorted((root / "checkpoints").iterdir())[0 if both else 1 :]:
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    capsys.readouterr()
    resumed = train(make_network(adapted=False), rows, cfg, root)
    said = capsys.readouterr().err
    assert said.startswith(f"checkpoint damaged: {root / 'checkpoints' / 'update-00000004'} (")
    assert said.count("\n") == 1
    expected = "again from update 0" if both else f"going on from update 2, {root / 'checkpoints' / 'update-00000002'}"
    assert said.endswith(f"{expected}\n")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert [row["update"] for row in read_metrics(str(root))] == list(range(7))


def test_a_damaged_checkpoint_of_version_0_1_changes_nothing(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    """It has no sums: what can be read of it is checked before anything is restored."""
    train(make_network(), rows, make_config(updates=3), tmp_path)
    folder = tmp_path / "checkpoints" / "update-00000003"
    (folder / STATE).write_text(json.dumps({"format": 1, "updates_done": 3, "run": RUN}))
    network = make_network()
    optimizer = make_optimizer(network, make_config())
    assert load_checkpoint(folder, network.trainable(), optimizer, RunFingerprint(RUN)) == 3
    before = {name: parameter.detach().clone() for name, parameter in network.trainable().items()}
    moments = load_file(folder / OPTIMIZER)
    for damage in ("cut", "renamed", "deleted"):
        if damage == "cut":
            (folder / OPTIMIZER).write_bytes((folder / OPTIMIZER).read_bytes()[:-5])
        elif damage == "renamed":
            save_file({f"x{key}": value for key, value in moments.items()}, folder / OPTIMIZER)
        else:
            (folder / OPTIMIZER).unlink()
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(folder, network.trainable(), optimizer, RunFingerprint(RUN))
        assert all(torch.equal(before[name], parameter) for name, parameter in network.trainable().items())


def test_a_checkpoint_that_ray_train_kept_for_version_0_1_is_gone_on_from(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    train(make_network(adapted=False), rows, make_config(updates=3), tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / "update-00000003").rename(folder / "checkpoint_2026-11-01_09-08-07.654321")
    (folder / "checkpoint_manager_snapshot.json").write_text('{"cut')
    assert FolderCheckpoints(folder).load(lambda path: int(json.loads((path / STATE).read_text())["updates_done"])) == 3
    train(make_network(adapted=False), rows, make_config(updates=7, checkpoint_every=2), tmp_path)
    assert FolderCheckpoints(folder).kept() == ["update-00000006", "update-00000007"]


@pytest.mark.parametrize(
    ("harmful", "retain", "world", "message"),
    [
        (3, 9, 1, "the training set has 3 rows, one update needs 4"),
        (9, 2, 1, "there are 2 retain rows, one update needs 3"),
        (9, 9, 5, "5 training workers share 4 harmful rows"),
    ],
)
def test_too_few_rows_are_told_before_training(
    harmful: int, retain: int, world: int, message: str, make_config: MakeConfig
) -> None:
    with pytest.raises(DatError, match=message):
        check_rows(make_config(), harmful, retain, world)


def test_split_weights_need_rows_that_divide_among_the_workers(make_config: MakeConfig) -> None:
    check_rows(make_config(shard_weights=True, harmful_rows=4, retain_rows=2), 9, 9, 2)
    with pytest.raises(DatError, match=r"lets 2 workers run in step, and training.retain_rows = 3 .* a multiple of 2"):
        check_rows(make_config(shard_weights=True, harmful_rows=4, retain_rows=3), 9, 9, 2)
    with pytest.raises(ValueError, match="compile and shard_weights do not go together"):
        make_config(shard_weights=True, compile=True)


class Noticed(FolderCheckpoints):
    """Is told once, after the second update, that the machine will go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = 0

    def urgent(self) -> bool:
        self.asked += 1
        return self.asked == 2


def test_a_notice_is_answered_with_a_checkpoint(
    make_network: MakeNetwork, make_config: MakeConfig, rows: TrainingRows, tmp_path: Path
) -> None:
    checkpoints, cfg = Noticed(tmp_path), make_config(updates=5, checkpoint_every=5)
    fine_tune(make_network(), rows, cfg, 0, TrainingFiles(RunFingerprint("0"), checkpoints))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-00000002", "update-00000005"]
    assert checkpoints.asked == 5, "all workers ask after every update: the answer is an agreement"


def test_updates_follow_from_epochs(make_config: MakeConfig) -> None:
    assert count_updates(make_config(updates=7), 100) == 7
    assert count_updates(make_config(updates=None, epochs=6), 1600) == 2400
    assert count_updates(make_config(updates=None, epochs=1.5), 5) == 2


@pytest.mark.parametrize(
    ("schedule", "update", "rate"),
    [
        # 400 steps and a share of 0.05: 20 of them rise. The adaptation of version 0.1 rose by 21sts: 1/21 and 20/21 here.
        (Schedule(400, 1.0, 0.05), 0, 1 / 20),
        (Schedule(400, 1.0, 0.05), 18, 19 / 20),
        (Schedule(400, 1.0, 0.05), 19, 1.0),
        (Schedule(400, 1.0, 0.05), 20, 1.0),
        (Schedule(400, 1.0, 0.05), 210, 0.5),
        (Schedule(400, 1.0, 0.05), 305, 0.5 - 0.25 * 2**0.5),
        # A third of 10 is rounded up to 4; that version took 3.
        (Schedule(10, 0.1, 0.33), 2, 0.075),
        (Schedule(10, 0.1, 0.33), 3, 0.1),
        (Schedule(10, 0.1, 0.33), 6, 0.075),
        (Schedule(10, 0.1, 0.33), 7, 0.05),
        (Schedule(10, 0.1, 0.2, "constant"), 0, 0.05),
        (Schedule(10, 0.1, 0.2, "constant"), 9, 0.1),
        (Schedule(1, 0.1, 0.0), 0, 0.1),
        (Schedule(1, 0.1, 1.0), 0, 0.1),
    ],
)
def test_learning_rates_computed_by_hand(schedule: Schedule, update: int, rate: float) -> None:
    assert schedule.rate(update) == pytest.approx(rate, rel=1e-12)
