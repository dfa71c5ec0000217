"""Choosing among models without labels."""
