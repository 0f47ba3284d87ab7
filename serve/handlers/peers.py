"""The other replicas of one endpoint: an answer for the whole endpoint from any of them.

A request for /metrics or /stats, a load or an unload reaches one replica, whichever the proxy chooses. That one sends
it to the others on their own ports (`?replica=self` and a header make each answer for itself alone) and joins the
answers.

Invariant: a replica that does not answer within `TIMEOUT_S` is named as missing and holds nobody up longer.
Covered: any number of replicas on any node. Not covered: who they are (serve/deployments/peer_discovery.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass

import httpx

TIMEOUT_S = 2.0
SELF = "self"
SELF_HEADER = "x-manta-replica"


@dataclass(frozen=True)
class Caller:
    """The client of an administrative change."""

    authorization: str = ""
    is_peer: bool = False
    """Another replica passes a client's request on: it is done here alone."""


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Set by the doors for the request at hand."""


@dataclass(frozen=True)
class Peer:
    """Another replica."""

    replica: str
    urls: tuple[str, ...]
    """Of its own port, with the endpoint's path; the first that can be reached counts."""


@dataclass(frozen=True)
class Peers:
    """This replica's name, and how to find the others now."""

    replica: str = "0"
    others: Callable[[], Awaitable[list[Peer]]] | None = None
    """None: there is one process."""

    async def ask(self, path: str, authorization: str = "") -> dict[str, bytes | None]:
        """What each other replica answers to GET `path`; None for one that does not."""
        return await self._all("GET", path, Caller(authorization), TIMEOUT_S)

    async def pass_on(self, path: str, timeout_s: float) -> list[str]:
        """POST `path` to each other replica as the client at hand; the names of those that did not do it.

        Nothing is passed on for a caller that is a replica itself.
        """
        caller = CALLER.get() or Caller()
        if caller.is_peer:
            return []
        answers = await self._all("POST", path, caller, timeout_s)
        return sorted(replica for replica, answer in answers.items() if answer is None)

    async def _all(self, method: str, path: str, caller: Caller, timeout_s: float) -> dict[str, bytes | None]:
        if self.others is None:
            return {}
        peers = await self.others()
        headers = {SELF_HEADER: SELF, **({"Authorization": caller.authorization} if caller.authorization else {})}
        async with httpx.AsyncClient(timeout=timeout_s, headers=headers, trust_env=False) as client:
            answers = await asyncio.gather(*(_send(client, method, peer, path) for peer in peers))
        return {peer.replica: answer for peer, answer in zip(peers, answers, strict=True)}


async def _send(client: httpx.AsyncClient, method: str, peer: Peer, path: str) -> bytes | None:
    for url in peer.urls:
        try:
            response = await client.request(method, f"{url}{path}", params={"replica": SELF})
        except httpx.ConnectError:
            continue
        except httpx.TransportError:
            return None
        return response.content if response.status_code == 200 else None
    return None
