"""Runs as Ray jobs: the working folder as a package, and the head's Jobs API."""
