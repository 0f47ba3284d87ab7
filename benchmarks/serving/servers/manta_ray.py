"""Manta's endpoint on a private Ray. Usage: python manta_ray.py BUNDLE PORT; the URL is .../m."""

from __future__ import annotations

import os
import sys
import threading

from cluster.runtime.environment import with_ray_environment

os.environ.update(with_ray_environment(dict(os.environ)))


def main(bundle: str, port: int) -> None:
    from cluster.runtime.session import ray_session
    from serve.config import EndpointConfig, VersionConfig
    from serve.deployments.endpoint import EndpointOptions, deploy

    version = VersionConfig(version="1", bundle=bundle)
    with ray_session():
        deploy(EndpointConfig(name="m", versions=(version,), default_version="1"), EndpointOptions(port=port))
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
