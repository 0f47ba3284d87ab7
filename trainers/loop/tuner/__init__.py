"""Micro-batch and learning rate found by trying, and the memory of an update."""
