"""Masked-diffusion mathematics: canvas, denoising law, sampler, adaptation."""
