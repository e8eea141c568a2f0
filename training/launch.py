"""One process of a training stage: its rank, its device, its process group, its command line.

`deepspeed`, `torchrun` or nothing at all starts it; only RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are
read, and where they are absent there is one process.
"""

from __future__ import annotations

import argparse
import datetime
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

import training  # noqa: F401  sets TORCH_EXTENSIONS_DIR
from pipeline import artifact, recipe
from pipeline.errors import CrawlToChatError, MachineError
from pipeline.storage import Storage

T = TypeVar("T")

# torch's own default; DeepSpeed's fell to 10 minutes (DeepSpeed#8253), less than a first compile on a slow disk.
TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Job:
    """What the command line says."""

    recipe: recipe.Recipe
    storage: Storage
    run: str
    input: str | None
    force: bool


@dataclass(frozen=True)
class World:
    """This process among all of the launch."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True in the process that writes files and logs."""
        return self.rank == 0


def parse(program: str, arguments: Sequence[str] | None = None) -> Job:
    """The command line of a training stage, the same as of a Spark job."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--recipe", required=True, help="recipe file")
    parser.add_argument("--root", required=True, help="folder (or URI) that holds runs and artifacts")
    parser.add_argument("--run", help="name of the run; default: the recipe's name")
    parser.add_argument("--input", help="folder of the input artifact below the root; default: what the run made")
    parser.add_argument("--force", action="store_true", help="make it again although it is published")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed appends it; LOCAL_RANK says it
    given = parser.parse_args(arguments)
    chosen = recipe.load(given.recipe)
    return Job(chosen, Storage(given.root), artifact.run_name(given.run or chosen.name), given.input, given.force)


def start(seed: int) -> World:
    """Join the process group (gloo on CPU, nccl on GPU), set threads and seeds. Call it once a process."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        if local_rank >= torch.cuda.device_count():
            raise MachineError(
                f"rank {rank} wants GPU {local_rank}, and this machine has {torch.cuda.device_count()}",
                "start as many processes as there are GPUs",
            )
        torch.cuda.set_device(device)
    else:
        # Two ranks with all cores each spend their time waiting for each other.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, local_size)))
    # DeepSpeed reads these itself, and asks MPI where they are absent.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if size == 1:
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=size, timeout=TIMEOUT)
    seed_all(seed)
    return World(rank, local_rank, size, local_size, device)


def seed_all(seed: int) -> None:
    """Seed torch and numpy; the same on all ranks."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def tell(world: World, value: Any) -> Any:
    """What rank 0 holds, on all ranks."""
    box = [value]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def by_first(world: World, make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on all ranks. An error of ours ends all of them, and only rank 0 reports it."""
    made: T | None = None
    error: CrawlToChatError | None = None
    if world.first:
        try:
            made = make()
        except CrawlToChatError as raised:
            error = raised
    made, code = tell(world, (made, None if error is None else error.exit_code))
    if code is not None:
        stop()
    if error is not None:
        raise error
    if code is not None:
        sys.exit(code)
    return cast(T, made)


def wait(world: World) -> None:
    """Until all ranks are here."""
    if world.size > 1:
        dist.barrier()


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
