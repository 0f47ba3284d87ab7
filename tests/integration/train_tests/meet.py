"""One of two processes that meet over gloo from different hosts: `python -m … FOLDER named|unnamed RANK`."""

from __future__ import annotations

import json
import socket
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from trainers.launch.process_group import name_interface

TIMEOUT_S = 15


def main() -> None:
    folder, how, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    interface = name_interface() if how == "named" else None
    facts = {"interface": interface, "host": socket.gethostbyname(socket.gethostname()), "sum": None, "error": ""}
    store = dist.TCPStore("10.9.0.1", 29500, 2, is_master=rank == 0, timeout=timedelta(seconds=TIMEOUT_S))
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_S))
        value = torch.tensor([rank + 1.0])
        dist.all_reduce(value)
        facts["sum"] = value.item()
    except RuntimeError as error:
        facts["error"] = str(error)
    (folder / f"facts.{how}.{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
