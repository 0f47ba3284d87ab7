"""The IDX format of MNIST: two zero bytes, a type byte, a rank byte, big-endian sizes, then the values.

Source of the format: LeCun, Cortes, Burges, "The MNIST database", section "File formats". Invariant: an array is
returned only when the file holds exactly as many bytes as its header promises.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.errors import DataError
from trainers.data.read.fetch import called_by_url, local_file
from trainers.data.read.files import open_bytes

DTYPE_OF = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an IDX file (a path or a URL), plain or gzip, in native byte order. Raises DataError."""
    local = local_file(path)
    with called_by_url([local]):
        data = open_bytes(local)
    attempted = f"Cannot read {path} as IDX"
    if len(data) < 4 or data[:2] != b"\x00\x00" or data[2] not in DTYPE_OF:
        raise DataError(
            attempted,
            found=f"it starts with the bytes {data[:4].hex(' ')}",
            rule="an IDX file starts with 00 00, a type (08, 09, 0b-0e) and the number of axes",
            remedy="Give the *-idx3-ubyte and *-idx1-ubyte files, as they are or as .gz.",
        )
    dtype, rank = np.dtype(DTYPE_OF[data[2]]), data[3]
    start = 4 + 4 * rank
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], dtype=">u4"))
    wanted = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(shape) != rank or len(data) != wanted:
        raise DataError(
            attempted,
            found=f"the header promises shape {list(shape)} in {wanted:,} bytes, the file has {len(data):,}",
            remedy="The copy was cut short: copy it again.",
        )
    array = np.frombuffer(data, dtype=dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
