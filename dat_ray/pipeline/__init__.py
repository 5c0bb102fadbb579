"""Verbs that join several rooms: the run from first stage to report, and the making of a sampler."""
