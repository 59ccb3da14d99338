"""Incidents: the connected story of one failure, read out of the ledger."""
