"""What runs inside the machine that is measured: Python's standard library and Debian's only."""
