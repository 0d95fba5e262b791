"""Benchmarks: interleaved ratios, run by hand, never a timed test."""
