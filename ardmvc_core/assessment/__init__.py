"""What is said about the robustness of one model: the suite, curves, checks C1 to C20, certificates and intervals."""
