"""Distributional adversarial training of language models, as a pipeline on Ray."""

__version__ = "0.2.0"
