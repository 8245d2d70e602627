"""Scores of an evaluation: intervals, AUROC, and the difference of two evaluations; needs no torch."""
