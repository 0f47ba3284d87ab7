"""Ray sessions, the workers' event channel, jobs: the only files of the floor that import ray."""
