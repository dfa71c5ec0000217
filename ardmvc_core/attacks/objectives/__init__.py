"""What an attack raises."""
