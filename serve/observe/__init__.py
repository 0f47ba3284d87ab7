"""What an endpoint tells of itself: counts, one look over all replicas, Prometheus."""
