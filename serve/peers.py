"""The replicas of one endpoint, as one of them asks the others: an answer for the whole endpoint from any of them.

A scrape or a look at /stats reaches one replica, whichever the proxy chooses. That one asks the others on their own
ports (`?replica=self` makes each answer for itself alone) and joins what they say.

Invariant: a replica that does not answer within `TIMEOUT_S` is named as missing and holds nobody up longer.
Covered: any number of replicas on any node. Not covered: who they are (serve/deployments/neighbors.py knows Ray).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

TIMEOUT_S = 2.0
SELF = "self"


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
        if self.others is None:
            return {}
        peers = await self.others()
        headers = {"Authorization": authorization} if authorization else {}
        async with httpx.AsyncClient(timeout=TIMEOUT_S, headers=headers, trust_env=False) as client:
            answers = await asyncio.gather(*(_get(client, peer, path) for peer in peers))
        return {peer.replica: answer for peer, answer in zip(peers, answers, strict=True)}


async def _get(client: httpx.AsyncClient, peer: Peer, path: str) -> bytes | None:
    for url in peer.urls:
        try:
            response = await client.get(f"{url}{path}", params={"replica": SELF})
        except httpx.ConnectError:
            continue
        except httpx.TransportError:
            return None
        return response.content if response.status_code == 200 else None
    return None
