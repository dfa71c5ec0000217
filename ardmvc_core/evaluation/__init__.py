"""From a trained model and views to scores: budget, protocols, metrics, intervals."""
