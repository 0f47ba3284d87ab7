"""Where runs and bundles live."""

from cluster.store.run_folder import RunFolder, StageRecord, find_run, list_runs

__all__ = ["RunFolder", "StageRecord", "find_run", "list_runs"]
