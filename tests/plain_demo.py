"""The demo without encoder, floors, prompts for harmless requests and drift: for tests that bring rows or engines along."""

from __future__ import annotations

# As `--set` takes them.
PLAIN = (
    "encoder=null",
    "behaviors.harmless=null",
    "behaviors.harmless_heldout=null",
    "training.retain.inpainted_share=0.0",
    "selection.min_goal_similarity=null",
    "selection.max_goal_similarity=null",
    "evaluation.min_goal_similarity=null",
    "evaluation.kl_rows=0",
)
# The same of a study's arms.
PLAIN_ARMS = [f"settings.{setting}" for setting in PLAIN]
