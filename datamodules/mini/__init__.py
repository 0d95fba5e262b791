"""Miniature datasets from real handwritten digits, written in the official layouts of the full-size ones."""
