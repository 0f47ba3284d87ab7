"""docker/ agrees with the code, ships what it needs and no more, and opens nothing to the network.

No container engine is at hand where these tests run: images are not built here. What can be wrong without one is
checked: paths, variables, ports, packages. compose.yaml was also checked against the Compose Specification's schema.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.runtime.environment import CLUSTER_ENVIRONMENT, RAY_ENVIRONMENT
from cluster.runtime.private.shared_memory import OBJECT_STORE_BYTES_MIN

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile.trainer", "Dockerfile.serve")
NODES = ("head", "worker", "worker-gpu")
SIZES = {"mb": 1 << 20, "gb": 1 << 30}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[tuple[str, str]]:
    text = (DOCKER / name).read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(word, rest.strip()) for line in lines if line for word, _, rest in [line.partition(" ")]]


def test_a_node_starts_with_the_variables_of_the_code_and_the_users_win() -> None:
    entry = next(rest for word, rest in instructions("Dockerfile.trainer") if word == "ENTRYPOINT")
    assert json.loads(entry) == ["python", "-m", "cluster.runtime.node"]
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    command = [sys.executable, *json.loads(entry)[1:], sys.executable, "-c", show]
    own = {"RAY_JOB_STOP_WAIT_TIME_S": "7", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray_token"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    done = subprocess.run(command, cwd=ROOT, env={**clean, **own}, capture_output=True, text=True, timeout=60)
    got = json.loads(done.stdout)
    expected = {**RAY_ENVIRONMENT, **CLUSTER_ENVIRONMENT, **own}
    assert {name: got.get(name) for name in expected} == expected
    assert Path(got["RAY_SERVE_HAPROXY_BINARY_PATH"]).stat().st_mode & 0o700 == 0o700


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_nobody_is_root(name: str) -> None:
    found = instructions(name)
    for sources in (rest.split()[:-1] for word, rest in found if word == "COPY"):
        assert all((ROOT / source).exists() for source in sources), sources
    assert [rest for word, rest in found if word == "USER"] == ["manta"]
    assert not [word for word, _ in found if word == "ADD"]


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_the_clusters_variables_the_token_and_the_runs(compose: dict[str, Any], node: str) -> None:
    service = compose["services"][node]
    environment = dict(service["environment"])
    assert environment.pop("RAY_AUTH_TOKEN_PATH") == f"/run/secrets/{service['secrets'][0]}"
    assert environment.pop("MANTA_RUNS_DIR") == "/runs"
    assert not environment, "variables come from one place: cluster/runtime/environment.py"
    assert "runs:/runs" in service["volumes"]
    assert service["secrets"][0] in compose["secrets"]


@pytest.mark.parametrize("node", NODES)
def test_shared_memory_holds_an_object_store(compose: dict[str, Any], node: str) -> None:
    number, unit = re.fullmatch(r"(\d+)(\w+)", compose["services"][node]["shm_size"]).groups()  # type: ignore[union-attr]
    assert int(number) * SIZES[unit] >= 10 * OBJECT_STORE_BYTES_MIN


def test_nothing_is_published_beyond_this_machine(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not [port for port in ports if "6379" in port or "10001" in port]
    assert "--dashboard-host=0.0.0.0" not in (DOCKER / "compose.yaml").read_text(encoding="utf-8")


def test_a_head_that_works_not_and_two_workers(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert "--num-cpus=0" in " ".join(services["head"]["command"])
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["worker"]["depends_on"]["head"]["condition"] == "service_healthy"


def test_a_stop_gives_time_for_a_last_checkpoint(compose: dict[str, Any]) -> None:
    wait_s = int(CLUSTER_ENVIRONMENT["RAY_JOB_STOP_WAIT_TIME_S"])
    assert all(int(compose["services"][node]["stop_grace_period"].removesuffix("s")) > wait_s for node in NODES)


def distributions(lines: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ]", line.strip())[0].lower() for line in lines if line.strip() and line[0] != "#"}


def declared() -> set[str]:
    return distributions(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    )


def serving() -> set[str]:
    return distributions((DOCKER / "serve-requirements.txt").read_text(encoding="utf-8").splitlines()) | {"onnxruntime"}


def test_the_serving_image_has_no_training_stack() -> None:
    assert not serving() & {"torch", "scikit-learn", "pandas", "imbalanced-learn", "optuna", "onnx", "onnxscript"}
    assert serving() <= declared() | {"grpcio", "protobuf"}
    copied = [rest for word, rest in instructions("Dockerfile.serve") if word == "COPY"]
    assert not [rest for rest in copied if "trainers" in rest]


def test_serving_starts_with_only_its_own_packages() -> None:
    script = textwrap.dedent(
        f"""
        import importlib, importlib.abc, importlib.metadata, pkgutil, sys
        left_out = {sorted(declared() - serving())!r}
        tops = importlib.metadata.packages_distributions()
        blocked = {{top for top, names in tops.items() if {{name.lower() for name in names}} & set(left_out)}}
        blocked |= {{"trainers", "torch"}}
        assert {{"pandas", "sklearn", "optuna", "matplotlib"}} <= blocked

        class Absent(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in blocked:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        import serve
        for module in pkgutil.walk_packages(serve.__path__, "serve."):
            if module.name.endswith("__main__") or module.name in ("serve.engines.torch", "serve.engines.tensorrt"):
                continue  # engines of other images are loaded by name, when a bundle asks for them
            importlib.import_module(module.name)
        from serve.__main__ import parse
        print(parse(["/bundle", "--host", "0.0.0.0", "--port", "8000"]).port)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "8000", done.stderr
