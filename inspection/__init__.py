"""What an adapter folder holds, read from its bytes without trusting one of them."""
