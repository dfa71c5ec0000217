"""The parts that models are made of: encoders, decoders, heads, k-means."""
