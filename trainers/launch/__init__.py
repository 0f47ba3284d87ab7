"""Ray Train wiring and nothing else: workers, process group, retries. What they do is in trainers/loop."""

from trainers.launch.fit import launch_fit

__all__ = ["launch_fit"]
