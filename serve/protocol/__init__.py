"""Open Inference Protocol v2 <-> numpy: whole requests (codec.py), single tensors (tensors.py), packed bodies."""
