"""Attacks on finished models: what they raise, how they search, and the suite that runs a tier of them."""
