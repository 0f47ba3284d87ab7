"""What an endpoint tells of all its replicas together: one look (monitor.py), one scrape (metrics.py)."""
