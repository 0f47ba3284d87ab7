"""Structured events, progress display and log setup. Nothing here runs at import."""
