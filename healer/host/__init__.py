"""What several parts of healer learn from the machine, or do to it."""
