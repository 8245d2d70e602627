"""Scores of an evaluation: their intervals, and the difference of two evaluations; needs no torch."""
