"""What clients send, made sense of."""
