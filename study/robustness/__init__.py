"""The report on one model's robustness."""
