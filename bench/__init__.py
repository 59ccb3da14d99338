"""What healer costs and how fast it is, measured beside its peers: ``python -m bench SUITE``."""
