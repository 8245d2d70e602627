"""The scopes of routing: one decision for a token, a layer's token, a whole request, or a segment of it."""
