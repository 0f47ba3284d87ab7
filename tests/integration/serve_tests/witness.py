"""Well-behaved clients that ask without pause while something bad happens, and check every row that comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np

DEADLINE_S = 30.0


class Witnesses:
    """`count` clients of a model whose first output is the sum of a row."""

    def __init__(self, url: str, name: str, *, count: int = 2, width: int = 4) -> None:
        self.path = f"{url}/v2/models/{name}/infer"
        self.right = 0
        self.wrong: list[str] = []
        self.longest_s = 0.0
        self._width = width
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(count)]

    def _ask(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with httpx.Client(timeout=DEADLINE_S, trust_env=False) as http:
            while not self._stop.is_set():
                row = rng.random(self._width).round(3).tolist()
                body = {"inputs": [{"name": "x", "shape": [1, self._width], "datatype": "FP32", "data": row}]}
                started = time.monotonic()
                try:
                    answer = http.post(self.path, json=body)
                    good = answer.status_code == 200 and abs(answer.json()["outputs"][0]["data"][0] - sum(row)) < 1e-3
                    text = answer.text
                except httpx.TransportError as error:
                    good, text = False, repr(error)
                with self._lock:
                    self.longest_s = max(self.longest_s, time.monotonic() - started)
                    self.right += good
                    if not good:
                        self.wrong.append(text)

    def more(self, answers: int) -> None:
        """Until `answers` further ones were right."""
        target, deadline = self.right + answers, time.monotonic() + DEADLINE_S
        while self.right < target:
            assert time.monotonic() < deadline, f"{self.right} right answers, {self.wrong[:3]}"
            time.sleep(0.01)


@contextmanager
def witnessed(url: str, name: str, *, count: int = 2, width: int = 4) -> Iterator[Witnesses]:
    """Answers before, during and after the block must all be right."""
    found = Witnesses(url, name, count=count, width=width)
    for thread in found._threads:
        thread.start()
    try:
        found.more(5)
        yield found
        found.more(20)
    finally:
        found._stop.set()
        for thread in found._threads:
            thread.join(DEADLINE_S)
    assert found.wrong == []
