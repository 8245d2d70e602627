"""The parts of ``doctor``."""
