"""Attacks, metrics with intervals, over-refusal."""
