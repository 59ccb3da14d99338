"""The only rooms with windows: everything healer learns from or does to the machine."""
