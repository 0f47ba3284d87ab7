"""Families: (spec, signature) -> nn.Module. `FAMILIES` lists them; each is one file."""

from trainers.models.build import FAMILIES, build_model, count_parameters

__all__ = ["FAMILIES", "build_model", "count_parameters"]
