"""Attacks, one or a few of a kind to a module; `base` says what an attack is, `dat_ray.evaluation.registry` finds them."""
