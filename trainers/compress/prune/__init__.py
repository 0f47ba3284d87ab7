"""Structured pruning: which channels hang together, which ones go, and the plan that rebuilds what is left."""
