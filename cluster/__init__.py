"""The floor: what a run is, where it lives, what it runs on. Never imports torch.

Read `docs/architecture.md` for the picture of the house.
"""

__version__ = "0.1.0"
