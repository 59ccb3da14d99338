"""The ledger: a hash chain of signed entries, durable before they are acknowledged.

docs/ledger.md describes the format; ``writer.Ledger`` writes it, ``reader`` reads it and
``verify`` checks it with the public key alone.
"""
