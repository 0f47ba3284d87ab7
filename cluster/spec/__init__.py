"""Every YAML section as a frozen model: load -> resolve -> digest. Never imports torch."""

from cluster.spec.load import load_spec, override_spec, parse_spec, validate_spec
from cluster.spec.run import RunSpec

__all__ = ["RunSpec", "load_spec", "override_spec", "parse_spec", "validate_spec"]
