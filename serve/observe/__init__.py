"""An endpoint over all its replicas: the recent window (monitor.py), Prometheus metrics (metrics.py)."""
