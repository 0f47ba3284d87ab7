"""Ray Train wiring and one process without it: workers, process group, retries. What they do is in trainers/loop."""
