"""Room two: a bundle becomes answers. Read `serve/handler.py` first."""
