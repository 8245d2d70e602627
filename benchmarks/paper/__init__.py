"""The MeteoRA paper's tasks on a real base: many LoRA adapters, and every way of choosing among them."""
