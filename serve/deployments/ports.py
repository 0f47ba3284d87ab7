"""The endpoint's port; the driver asks the same question before a run starts (cluster/runtime/preflight.py)."""

from __future__ import annotations

from cluster.runtime.ports import claim_port

__all__ = ["claim_port"]
