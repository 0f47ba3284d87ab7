"""Test metrics: batched predictions, per-class table, confusion matrix."""
