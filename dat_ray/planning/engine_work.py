"""A role's work from questions and settings: the parts that all stages share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import fmean

from dat_ray.config.cluster import Pool
from dat_ray.config.models import JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.devices import Device
from dat_ray.engines.judge_prompts import READERS
from dat_ray.planning.footprint import DTYPE_BYTES, sampler_bytes, target_bytes, weight_bytes_of
from dat_ray.planning.parts import RoleWork
from dat_ray.planning.quantities import TEMPLATE_TOKENS, Quantities
from dat_ray.planning.shapes import ModelShape, model_shape
from dat_ray.planning.speed import Answers, Host, Infill, answer_seconds, infill_seconds

# Of a judge's prompt without the goal and the answer, and of a block of vLLM's prefix cache, which each grade reads again.
JUDGE_PROMPT_TOKENS, BLOCK_TOKENS = 200, 16
GRADES = 5
ANSWER_PREFIX_TOKENS = 3


@dataclass
class Planning:
    """What all stages are planned from.

    Attributes:
        recipe: resolved.
        device: of every actor that asks for a GPU, or the machine.
        sizes: of the data.
        notes: what was taken for granted, once each; filled on the way.
    """

    recipe: Recipe
    device: Device
    sizes: Quantities
    notes: dict[str, None] = field(default_factory=dict)

    def host(self, pool: Pool) -> Host:
        """Where an actor of a pool works."""
        return Host(self.device, pool.threads)

    def shape(self, section: str, config: SamplerConfig | TargetConfig) -> ModelShape:
        """Of a section's model.

        Raises:
            InputError: its sizes are not known.
        """
        return model_shape(config.model, f"{section}.model", config.revision)

    def sampler(self, config: SamplerConfig, rows: float, target_tokens: float, section: str = "sampler") -> RoleWork:
        """In-painting of so many prompts for responses of a mean length."""
        pool, model = self.recipe.cluster.sampler, self.shape(section, config)
        host, work = self.host(pool), infill_work(config, target_tokens)
        joined = config.backend == "vllm" or config.compile
        seconds = rows * infill_seconds(host, model, work, joined=joined)
        passes = work.passes + 4 * config.likelihood_samples
        if config.threshold is not None or config.entropy_bound is not None:
            self.notes["sampler: parallel commits take fewer passes than are counted here, how many is not known before"] = None
        return RoleWork(
            "sampler",
            config.model,
            pool,
            seconds=seconds * passes / work.passes,
            start=host.start(weight_bytes_of(config, model)),
            calls=rows * passes,
            tokens=rows * passes * work.canvas,
            memory=sampler_bytes(config, model, work.masks),
            share=config.gpu_memory_utilization,
        )

    def answers(self, role: str, section: str, config: TargetConfig, pool: Pool, *asked: Answers) -> RoleWork:
        """Questions to a chat model."""
        rows = sum(work.rows for work in asked)
        if config.backend == "endpoint":
            self.notes[f"{role}: a server is asked, its time is not counted"] = None
            return RoleWork(role, "", pool, calls=rows, tokens=sum(work.tokens for work in asked))
        host, model = self.host(pool), self.shape(section, config)
        launched = config.backend == "torch"
        bytes_ = DTYPE_BYTES[config.dtype] if config.quantization is None else 1
        longest = max(asked, key=lambda work: work.prompt + work.written)
        return RoleWork(
            role,
            config.model,
            pool,
            seconds=sum(answer_seconds(host, model, work, bytes_, launched=launched) for work in asked) / config.tensor_parallel,
            start=host.start(weight_bytes_of(config, model)),
            calls=rows,
            tokens=sum(work.tokens for work in asked),
            memory=target_bytes(config, model, longest, on_gpu=self.device.is_gpu),
            share=config.gpu_memory_utilization,
        )

    def judge(self, config: JudgeConfig, rows: float, answer_tokens: float, section: str = "judge") -> RoleWork:
        """Judging of so many answers."""
        pool = self.recipe.cluster.judge
        if config.reader is None:
            return RoleWork("judge", "", pool, calls=rows)
        reader = config.reader
        prompt = min(reader.max_model_len, JUDGE_PROMPT_TOKENS + self.sizes.heldout.goal_tokens + answer_tokens)
        if config.name == "strongreject-finetuned":
            # Each grade is scored behind one prompt, whose blocks are in the cache but for the last.
            work = Answers(rows, prompt + GRADES * BLOCK_TOKENS, 1.0, reader.batch_size)
        else:
            written = config.max_tokens or (READERS[config.name][2] if config.name in READERS else reader.max_new_tokens)
            work = Answers(rows, prompt, written, reader.batch_size)
        return self.answers("judge", f"{section}.reader", reader, pool, work)

    def beside(self, work: RoleWork, *others: RoleWork) -> RoleWork:
        """Roles of one name as one: their work adds up, their memory too, where they are other models."""
        for one in others:
            models = {work.model, one.model} - {""}
            memory = max(work.memory, one.memory) if len(models) < 2 else work.memory + one.memory
            work = replace(
                work,
                model=" and ".join(sorted(models)),
                seconds=work.seconds + one.seconds,
                start=work.start + one.start,
                calls=work.calls + one.calls,
                tokens=work.tokens + one.tokens,
                memory=memory,
            )
        return work


def infill_work(config: SamplerConfig, target_tokens: float) -> Infill:
    """A prompt of mean length: template or answer prefix, masks, and the response as far as it is read."""
    response = min(float(config.max_target_tokens), target_tokens)
    around = TEMPLATE_TOKENS if config.layout == "chat" else ANSWER_PREFIX_TOKENS
    masks = fmean(config.prompt_tokens)
    passes = fmean(config.steps if config.refine else min(config.steps, length) for length in config.prompt_tokens)
    return Infill(around + masks + response, masks, passes * (2 if config.guidance else 1))
