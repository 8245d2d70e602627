"""The content of an adapter folder, read from its bytes without trusting any of them."""
