"""Searches with gradients, on workers that hold the model under attack in torch; nothing else in `evaluation` imports torch."""
