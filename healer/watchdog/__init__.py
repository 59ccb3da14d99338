"""Layer 1: crashes, restart policies, health checks, crash loops."""
