"""The record of every study: Optuna's tables, and who may write them."""
