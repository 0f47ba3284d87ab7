"""A run's curves for MLflow and Weights & Biases: one adapter each, from the run's events alone."""
