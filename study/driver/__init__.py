"""Gives trials out and hears of them; the only room that knows Ray."""
