"""The demo without encoder, floors and prompts for harmless requests: for tests with rows, counts or engines of their own."""

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
)
# The same of a study's arms.
PLAIN_ARMS = [f"settings.{setting}" for setting in PLAIN]
