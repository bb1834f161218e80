"""Loupe: what the scripts at the top level share."""

__version__ = "0.1.0"
