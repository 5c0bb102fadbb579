"""Micro-benchmarks: one operation against the plain form in which it was published. A module each, see `verb`."""
