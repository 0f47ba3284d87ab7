"""Room two: a bundle becomes answers. Read `serve/handlers/dataplane.py` first."""
