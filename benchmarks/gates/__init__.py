"""Measurements of how well a fused bundle routes on a real base, with seven small tasks."""
