"""The part of a study's file about checkpoints: how many of each training, and by which cheap suite. No torch, no ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dat_ray.config.evaluation import AttackName
from dat_ray.config.section import Positive, Section

# Of the suite, beside those of the file.
FRONTS = "fronts"


class FrontsConfig(Section):
    """Adapters along each training under one cheap suite: what an arm's robustness costs in over-refusal."""

    every: Positive = Field(8, description="updates between two adapters of a training that are kept and evaluated")
    attacks: Annotated[tuple[AttackName, ...], Field(min_length=1)] = Field(
        ("direct", "inpainting"), description="what the adapters are asked"
    )
    measure: str = Field(
        "boa",
        description="what success is: boa (any of the attacks breaks a behavior), an attack, or attack:share, of its prompts",
    )
    over_refusal: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.15,
        description="share of look-alikes refused at which arms are compared, at most, and up to which a front's area is taken",
    )
    backend: Literal["torch", "vllm"] | None = Field(
        "torch",
        description="of the target in this suite: torch serves all adapters of a study from one start; vllm starts once for each "
        "and keeps a merged copy of the model in the cache; absent: the study's own",
    )
    settings: dict[str, Any] = Field({}, description="fields of the section `evaluation` for this suite")

    def evaluation(self) -> dict[str, Any]:
        """The section `evaluation` of the suite over the study's: without what is slow and makes no point of a front."""
        plain = {"utility": {"tasks": []}, "kl_rows": 0, "second_judge": None, "gap": None}
        return {**plain, **self.settings, "attacks": list(self.attacks)}
