"""Trials in, order and sentences out. Pure functions."""
