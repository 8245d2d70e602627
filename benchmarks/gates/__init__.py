"""How well a fused bundle routes on a real base, measured on seven small tasks."""
