"""What one routing decision serves: a token, a layer's token, a whole request, or a segment of it."""
