"""Ray Serve wiring and nothing else: the replica, deploy and undeploy, the pipeline's two stages, the commands."""
