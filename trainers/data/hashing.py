"""A 64-bit content hash of each row, for splits that follow a row wherever it stands.

Invariant: equal rows have equal keys on every machine and in every version of NumPy; the order of rows has no effect.
Mixing is splitmix64's finalizer (Steele, Lea, Flood 2014). Not covered: resistance against chosen collisions.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


def table_keys(table: pa.Table) -> np.ndarray:
    """(N,) uint64 keys of the rows of a table of float64 and text columns; null has a value of its own."""
    keys = np.zeros(table.num_rows, dtype=np.uint64)
    for name in table.column_names:
        with np.errstate(over="ignore"):
            keys = mix(keys * MIX_1 + column_keys(table.column(name)))
    return keys


def column_keys(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) uint64 hash of one column's values: numbers by their float64 bits, all else by its text."""
    whole = column.combine_chunks()
    if pa.types.is_floating(whole.type) or pa.types.is_integer(whole.type):
        values = pc.fill_null(whole.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False) + 0.0
        keys = mix(np.ascontiguousarray(values).view(np.uint64))
    else:
        if not pa.types.is_dictionary(whole.type):
            whole = whole.cast(pa.string()).dictionary_encode()
        words = [text_key(str(word).encode()) for word in whole.dictionary.to_pylist()]
        table = np.array([*words, MISSING], dtype=np.uint64)
        keys = table[pc.fill_null(whole.indices, len(words)).to_numpy(zero_copy_only=False)]
    missing = pc.is_null(whole).to_numpy(zero_copy_only=False)
    keys = np.where(missing, MISSING, keys)
    return keys


def text_key(data: bytes) -> int:
    """A 64-bit hash of bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
