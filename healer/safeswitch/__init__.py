"""Layer 2: deployments, probation, promotion and rollback."""
