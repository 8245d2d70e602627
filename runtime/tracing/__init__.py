"""Which member each token took: recorded from a model, drawn as one self-contained page."""
