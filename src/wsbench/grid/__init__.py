"""Grids of runs: a definition becomes cells, a launcher runs them, their folders say how they stand."""
