"""Compression within an accuracy budget: quantize, prune, distill, and the gate that accepts or rejects."""
