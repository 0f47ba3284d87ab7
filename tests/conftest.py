"""Shared fixtures. One Ray session serves the whole test session: starting one costs seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.runtime.environment import with_ray_environment

os.environ.update(with_ray_environment(dict(os.environ)))  # before anything imports ray
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a script's background job is born deaf to Ctrl-C, and so are its children: tests press it
    signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[str]:
    """Address of a private local Ray that all integration tests share."""
    from cluster.runtime.session import ray_session

    with ray_session() as session:
        yield session.address


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; tests that want it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not here")
    return SHARED_DATA
