"""The queue before an engine: joins requests, isolates failures, refuses overload; batcher.py first."""
