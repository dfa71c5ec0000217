"""What to run next, and what it costs."""
