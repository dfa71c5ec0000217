"""Attacks that are networks: fitted once, then one forward pass a sample."""
