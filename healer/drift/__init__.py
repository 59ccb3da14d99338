"""Layer 3: the machine compared with its declaration."""
