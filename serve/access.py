"""Access to an endpoint: bearer tokens for inference, and others for the administrative API.

Invariant: load and unload are never open: without an administrative token they are refused to everyone. Tokens are
compared in constant time, as digests, all of them each time; they are never logged and never part of an answer.
Enforced in the replica, because its port can be reached without the proxy.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import RequestError
from serve.protocol.errors import bad_request

TOKEN_VARIABLE = "MANTA_TOKEN"
TOKEN_CHARACTERS_MIN = 16  # shorter ones can be guessed over the network


@dataclass(frozen=True)
class Access:
    """Digests of the tokens of one endpoint."""

    infer: tuple[bytes, ...] = ()
    """Empty: open to anyone."""
    admin: tuple[bytes, ...] = ()
    """Empty: nobody may load or unload."""

    def check(self, authorization: str, *, admin: bool = False) -> None:
        """Raise ProtocolError 401 or 403 unless the header's token may do it."""
        wanted = self.admin if admin else self.infer
        if not wanted:
            if admin:
                raise bad_request(
                    "load and unload are closed",
                    rule="they need a token of the endpoint's admin_token_file, and it has none",
                    status=403,
                )
            return
        scheme, _, token = authorization.partition(" ")
        digest = _digest(token.strip())
        known = (*wanted, *(() if admin else self.admin))
        matches = [hmac.compare_digest(digest, each) for each in known]
        if scheme.lower() != "bearer" or not any(matches):
            raise bad_request("no valid token", rule="send 'Authorization: Bearer TOKEN'", status=401)


def load_access(token_file: str | None, admin_token_file: str | None) -> Access:
    """Read token files: one token a line, `#` starts a comment. Raises RequestError."""
    return Access(_read(token_file), _read(admin_token_file))


def first_token(path: str | None) -> str:
    """The first token of a file, for clients on the same host; empty without a file."""
    return next(iter(_lines(path)), "") if path else ""


def client_token(token_file: str | None) -> str:
    """The token that a command sends: of a file, else of MANTA_TOKEN; empty without both. Raises RequestError.

    Never an argument of its own: every user of a host may read the arguments of every process.
    """
    if token_file is not None:
        return first_token(token_file)
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise RequestError(f"Cannot use the token in {TOKEN_VARIABLE}", found="it has characters no header can carry")
    return token


def absolute(path: str | None) -> str | None:
    """A token file's path as replicas find it: they run in another folder than the command that names it."""
    return str(Path(path).resolve()) if path else None


def _read(path: str | None) -> tuple[bytes, ...]:
    return tuple(_digest(token) for token in _lines(path)) if path else ()


def _lines(path: str) -> list[str]:
    attempted = f"Cannot read the token file {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            attempted, found=f"{type(error).__name__}", remedy="Write one token a line, readable by the replicas only."
        ) from None
    tokens = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not tokens or any(len(token) < TOKEN_CHARACTERS_MIN for token in tokens):
        raise RequestError(
            attempted,
            found="it has no token" if not tokens else "a token is too short",
            rule=f"at least one token, each of {TOKEN_CHARACTERS_MIN} characters or more",
            remedy="python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one.",
        )
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def from_metadata(entries: Iterable[tuple[str, str | bytes]]) -> str:
    """The authorization of a gRPC call's metadata; empty without one."""
    for name, value in entries:
        if name == "authorization":
            return value if isinstance(value, str) else value.decode("latin-1")
    return ""
