"""How an attack looks for its points."""
