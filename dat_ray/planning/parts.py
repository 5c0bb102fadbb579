"""What a plan is made of: a role's work in a stage, a stage, and what to change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from dat_ray.config.cluster import Pool
from dat_ray.devices import Device

# Of a card that one engine has for itself: vLLM's own default.
ALONE = 0.9


@dataclass(frozen=True)
class RoleWork:
    """What one role does in one stage.

    Attributes:
        role: its name.
        model: that it runs; empty where rules do the work or a server is asked.
        pool: its section of `cluster`.
        seconds: of work, for one actor.
        start: seconds until an actor takes its first row, all starts of the stage together.
        calls: forward passes of a sampler or search, updates of a trainer, questions of the others.
        tokens: read and written.
        memory: bytes on each of its devices; 0 where it holds no model.
        share: of the card that its engine may take; None where it takes what it needs.
    """

    role: str
    model: str
    pool: Pool
    seconds: float = 0.0
    start: float = 0.0
    calls: float = 0.0
    tokens: float = 0.0
    memory: float = 0.0
    share: float | None = None

    @property
    def actors(self) -> int:
        """At its largest."""
        return self.pool.max_actors

    @property
    def spread(self) -> float:
        """Seconds of work with all actors."""
        return self.seconds / self.actors

    def allowed(self, device: Device) -> float:
        """Bytes that it may take of each of its devices."""
        if not device.is_gpu:
            return device.memory
        return device.memory * (self.share if self.share is not None else min(ALONE, self.pool.num_gpus or ALONE))


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: of the stage.
        seconds: from its start to its end, with every pool at its largest.
        devices: GPUs that it holds, or 1 machine.
        critical: the role that it waits for.
        roles: what each does.
    """

    name: str
    seconds: float
    devices: float
    critical: str
    roles: tuple[RoleWork, ...]

    @property
    def device_seconds(self) -> float:
        """Seconds of all devices that it holds."""
        return self.seconds * self.devices


def repeated(stage: StagePlan, times: int) -> StagePlan:
    """A stage that is run so many times, one after the other."""
    roles = tuple(
        replace(one, seconds=times * one.seconds, start=times * one.start, calls=times * one.calls, tokens=times * one.tokens)
        for one in stage.roles
    )
    return replace(stage, seconds=times * stage.seconds, roles=roles)


def added(first: StagePlan, then: StagePlan) -> StagePlan:
    """Two stages of one name and the same roles, one after the other, as one."""
    roles = tuple(
        replace(
            one,
            seconds=one.seconds + other.seconds,
            start=one.start + other.start,
            calls=one.calls + other.calls,
            tokens=one.tokens + other.tokens,
        )
        for one, other in zip(first.roles, then.roles, strict=True)
    )
    return replace(first, seconds=first.seconds + then.seconds, roles=roles)


@dataclass(frozen=True)
class RunPlan:
    """A run before it starts.

    Attributes:
        recipe: its name.
        device: what each GPU, or the machine, is.
        stages: in order.
        disk: bytes by what they hold.
        notes: what the figures rest on, for this recipe.
        advice: what to change; empty where everything fits.
    """

    recipe: str
    device: Device
    stages: tuple[StagePlan, ...]
    disk: dict[str, float]
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Of all stages, one after the other."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def device_seconds(self) -> float:
        """Of all stages."""
        return sum(stage.device_seconds for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether nothing has to be changed."""
        return not self.advice


def share_devices(roles: Iterable[RoleWork], device: Device) -> bool:
    """Whether roles take turns on one device: on a machine's cores, or as parts of one card."""
    models = [one for one in roles if one.model]
    return not device.is_gpu or all(one.pool.num_gpus < 1 and one.actors == 1 for one in models)


def devices_held(roles: Sequence[RoleWork], device: Device) -> float:
    """GPUs that roles hold at the same time, with every pool at its largest; 1 for a machine, or a card that they share."""
    if share_devices(roles, device):
        return 1.0
    return max(1.0, sum(one.pool.num_gpus * one.actors for one in roles if one.model))


def slowest(roles: Sequence[RoleWork]) -> str:
    """The role that a stage waits for."""
    return max(roles, key=lambda one: one.spread).role


def memory_advice(stage: str, roles: Sequence[RoleWork], device: Device) -> list[str]:
    """What to change about the roles of one stage that hold models at the same time."""
    found, models = [], [one for one in roles if one.memory]
    for one in models:
        allowed = one.allowed(device)
        if one.memory > allowed:
            remedy = _remedy(one)
            found.append(
                f"{stage}: {one.role} needs {one.memory / 1e9:.1f} GB of the {allowed / 1e9:.1f} that it may take on "
                f"{device.title}: "
                f"{remedy}"
            )
    together = sum(one.memory for one in models if one.role != "search")
    if not found and share_devices(models, device) and together > device.memory:
        names = ", ".join(f"{one.role} {one.memory / 1e9:.1f}" for one in models)
        where = "of one card" if device.is_gpu else "of this machine"
        found.append(
            f"{stage}: {names} GB together exceed the {device.memory / 1e9:.0f} {where}: give each role a device, or take "
            "smaller models"
        )
    return found


def _remedy(one: RoleWork) -> str:
    field_ = f"cluster.{one.role}.num_gpus" if one.role != "search" else "cluster.target.num_gpus"
    if one.role == "trainer":
        return "lower training.micro_rows, or set training.activation_checkpointing or training.shard_weights"
    if one.share is not None:
        return f"raise its gpu_memory_utilization and {field_}, or lower its batch_size"
    if 0 < one.pool.num_gpus < 1:
        return f"raise {field_}, or lower its batch_size"
    return "lower its batch_size, set quantization: fp8, or spread it with tensor_parallel"
