"""Tokens: nothing that changes an endpoint is open by default, and a wrong token learns nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ProtocolError, RequestError
from serve.access import Access, absolute, client_token, load_access
from serve.protocol.errors import status_of
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_asgi import GOOD, INFER, client

USER, ADMIN = "user-token-0123456789", "admin-token-0123456789"


@pytest.fixture
def access(tmp_path: Path) -> Access:
    (tmp_path / "user").write_text(f"# first\n{USER}\n\n")
    (tmp_path / "admin").write_text(ADMIN)
    return load_access(str(tmp_path / "user"), str(tmp_path / "admin"))


def refused(access: Access, authorization: str, *, admin: bool = False) -> int:
    """The status of a refusal, 200 for none."""
    try:
        access.check(authorization, admin=admin)
    except ProtocolError as error:
        return status_of(error)
    return 200


def test_tokens_open_what_they_are_for(access: Access) -> None:
    assert [refused(access, f"Bearer {token}") for token in (USER, ADMIN, "wrong")] == [200, 200, 401]
    assert [refused(access, f"Bearer {token}", admin=True) for token in (USER, ADMIN, "wrong")] == [401, 200, 401]
    assert [refused(access, text) for text in ("", USER, f"Basic {USER}", f"bearer {USER}")] == [401, 401, 401, 200]


def test_without_an_administrative_token_load_and_unload_are_closed() -> None:
    assert refused(Access(), f"Bearer {ADMIN}", admin=True) == 403
    assert refused(Access(), "") == 200


def test_every_token_is_compared_in_constant_time(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = __import__("hmac").compare_digest

    def spy(left: bytes, right: bytes) -> bool:
        compared.append(right)
        return bool(real(left, right))

    monkeypatch.setattr("serve.access.hmac.compare_digest", spy)
    for token in (USER, "x"):
        refused(access, f"Bearer {token}")
    assert len(compared) == 4
    assert {len(each) for each in compared} == {32}


@pytest.mark.parametrize("text", ["", "# only a comment", "short"])
def test_a_token_file_without_usable_tokens_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(RequestError, match="token"):
        load_access(str(tmp_path / "tokens"), None)
    with pytest.raises(RequestError, match="FileNotFoundError"):
        load_access(str(tmp_path / "absent"), None)


def test_a_command_sends_the_token_of_its_file_before_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").write_text(f"# mine\n{USER}\n{ADMIN}\n")
    monkeypatch.delenv("MANTA_TOKEN", raising=False)
    assert client_token(None) == ""
    monkeypatch.setenv("MANTA_TOKEN", f"{ADMIN}\n")
    assert (client_token(None), client_token(str(tmp_path / "tokens"))) == (ADMIN, USER)
    monkeypatch.setenv("MANTA_TOKEN", "one\nX-Other: header")
    with pytest.raises(RequestError, match="MANTA_TOKEN") as caught:
        client_token(None)
    assert "one" not in caught.value.message


def test_a_relative_token_file_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens").write_text(USER)
    monkeypatch.chdir(tmp_path)
    path = absolute("tokens")
    monkeypatch.chdir("/")
    assert refused(load_access(path, absolute(None)), f"Bearer {USER}") == 200


def test_no_verb_takes_a_token_as_an_argument() -> None:
    """Every user of a host may read the arguments of every process."""
    from serve.deployments.__main__ import parse

    for words in (["predict", "digits", "rows.csv"], ["rollback", "digits"], ["endpoints"], ["deploy", "folder"]):
        assert parse([*words, "--token-file", "tokens"]).token_file == "tokens"
        with pytest.raises(SystemExit):
            parse([*words, "--token", USER])


def test_the_door_enforces_tokens_on_every_path_but_health(in_place: Callable[..., Any], access: Access) -> None:
    async def test(place: Place) -> None:
        place.dataplane.access = access
        async with client(place) as http:
            for method, path in (
                ("POST", INFER), ("GET", "/v2"), ("GET", "/v2/models/m"), ("POST", "/v2/repository/index"),
                ("POST", "/v2/repository/models/m/unload"), ("POST", "/predict"),
                ("POST", "/predict/image"), ("GET", "/stats"), ("GET", "/metrics"),
            ):  # fmt: skip
                response = await http.request(method, path, content=GOOD)
                assert (response.status_code, list(response.json())) == (401, ["error"]), path
            for path in ("/v2/health/live", "/v2/health/ready", "/docs"):
                assert (await http.get(path)).status_code == 200, path
            user = {"Authorization": f"Bearer {USER}"}
            assert (await http.post(INFER, content=GOOD, headers=user)).status_code == 200
            assert (await http.post("/v2/repository/models/m/unload", headers=user)).status_code == 401
            admin = {"Authorization": f"Bearer {ADMIN}"}
            assert (await http.post("/v2/repository/models/m/unload", headers=admin)).status_code == 200
            assert (await http.post(INFER, content=GOOD, headers=user)).status_code == 503

    in_place(test, pages=True)
