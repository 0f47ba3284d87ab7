"""What a run's curves and looks mean, in plain words, each with its evidence and the spec change that remedies it."""

from trainers.diagnose.findings import Finding, diagnose, findings_as_facts

__all__ = ["Finding", "diagnose", "findings_as_facts"]
