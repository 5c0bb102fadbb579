"""Adversarial fine-tuning: attack, objectives, step, loop, Ray Train driver."""
