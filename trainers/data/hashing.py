"""A 64-bit content hash of each row, for splits that follow a row wherever it stands.

Invariant: equal rows have equal keys on every machine and in every version of NumPy; the order of rows has no effect.
Mixing is splitmix64's finalizer (Steele, Lea, Flood 2014). Not covered: resistance against chosen collisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from cluster.bundle.transforms import Texts, Values

MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MISSING = np.uint64(0x6D697373696E6721)


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer over (N,) uint64: a bijection that spreads every bit."""
    with np.errstate(over="ignore"):
        z = values + GOLDEN
        z = (z ^ (z >> np.uint64(30))) * MIX_1
        z = (z ^ (z >> np.uint64(27))) * MIX_2
        return z ^ (z >> np.uint64(31))


def seeded(keys: np.ndarray, seed: int) -> np.ndarray:
    """(N,) uint64: the keys in an order that depends on the seed."""
    return mix(keys ^ mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)))


def array_keys(arrays: np.ndarray) -> np.ndarray:
    """(N,) uint64 keys of the rows of an array of any shape."""
    flat = np.ascontiguousarray(arrays).reshape(len(arrays), -1)
    return np.array([text_key(row.tobytes()) for row in flat], dtype=np.uint64)


def table_keys(values: Mapping[str, Values], num_rows: int) -> np.ndarray:
    """(N,) uint64 keys of the rows of a table; a missing value has a key of its own."""
    keys = np.zeros(num_rows, dtype=np.uint64)
    for column in values.values():
        with np.errstate(over="ignore"):
            keys = mix(keys * MIX_1 + column_keys(column))
    return keys


def column_keys(values: Values) -> np.ndarray:
    """(N,) uint64 hash of one column: numbers by their float64 bits, texts by their bytes."""
    if isinstance(values, Texts):
        words = [text_key(word.encode()) for word in values.words]
        return np.array([*words, int(MISSING)], dtype=np.uint64)[values.codes]
    bits = np.ascontiguousarray(values + 0.0).view(np.uint64)  # + 0.0: -0.0 and 0.0 are equal
    return np.where(np.isnan(values), MISSING, mix(bits))


def text_key(data: bytes) -> int:
    """A 64-bit hash of bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def words_keys(words: pa.Array) -> np.ndarray:
    """(N,) uint64 hash of each text of a string array, eight bytes at a time: for sketches, not for splits."""
    offsets = np.frombuffer(words.buffers()[1], dtype=np.int32)[words.offset : words.offset + len(words) + 1]
    raw = words.buffers()[2]
    data = np.frombuffer(raw, dtype=np.uint8)[offsets[0] : offsets[-1]] if raw is not None and len(words) else b""
    padded = np.concatenate([np.frombuffer(data, dtype=np.uint8), np.zeros(8, dtype=np.uint8)])
    eights = np.ndarray(shape=(len(padded) - 7,), dtype="<u8", buffer=padded, strides=(1,))
    places = offsets[:-1].astype(np.int64) - int(offsets[0])
    left = np.diff(offsets).astype(np.int64)
    keys = mix(left.astype(np.uint64))
    while len(active := np.flatnonzero(left > 0)):
        take = np.minimum(left[active], 8).astype(np.uint64)
        mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - take * np.uint64(8))
        with np.errstate(over="ignore"):
            keys[active] = mix(keys[active] * MIX_1 ^ (eights[places[active]] & mask))
        places[active] += 8
        left[active] -= 8
    return keys
