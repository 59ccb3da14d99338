"""healer: a NixOS host that heals itself and can prove what it did."""

__version__ = "0.1.0"
