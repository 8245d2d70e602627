"""Scores: metrics of answers, intervals, AUROC, and the difference of two evaluations; needs no torch."""
