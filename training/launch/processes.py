"""One process of a launch: its rank, its device, its process group, and what the ranks exchange.

`deepspeed`, `torchrun` or nothing at all starts it; only RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are
read, and where they are absent there is one process.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist

import training  # noqa: F401  sets TORCH_EXTENSIONS_DIR
from inference.network import seed_all
from pipeline import errors
from pipeline.errors import CrawlToChatError, MachineError, NodeError

T = TypeVar("T")

# Of a collective. torch's own default; DeepSpeed's fell to 10 minutes (DeepSpeed#8253), less than a first compile on a
# slow disk.
TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among all of the launch: `local_*` count within its machine."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    device: torch.device
    hosts: tuple[tuple[str, str], ...] = ()  # name and address of each rank's machine, where there are several ranks

    @property
    def first(self) -> bool:
        """True on rank 0, which writes files and logs for all."""
        return self.rank == 0


def start(seed: int) -> World:
    """Join the process group (gloo on CPU, nccl on GPU), set threads and seeds. Call it once per process."""
    # 1. Which process this is, and its device.
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        if local_rank >= torch.cuda.device_count():
            raise MachineError(
                f"rank {rank} belongs on GPU {local_rank}, and this machine has {torch.cuda.device_count()} GPUs",
                "start at most as many processes per machine as it has GPUs",
            )
        torch.cuda.set_device(device)
    else:
        # The ranks share the cores: two with all of them each spend their time waiting for each other.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, local_size)))
    # 2. The process group. DeepSpeed reads these variables itself, and looks for MPI where they are absent.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if size == 1:
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=size, timeout=TIMEOUT)
    # 3. Seeds; and, where there are several ranks, everybody's host, to name it in the error when a rank is lost.
    seed_all(seed)
    world = World(rank, local_rank, size, local_size, device)
    if size == 1:
        return world
    return dataclasses.replace(world, hosts=tuple(all_gather(world, (socket.gethostname(), _own_address()))))


def broadcast(world: World, value: Any) -> Any:
    """Rank 0's value, on all ranks."""
    values = [value]
    if world.size > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def all_gather(world: World, value: T) -> list[T]:
    """The values of all ranks, in the order of ranks, on all ranks."""
    values: list[Any] = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(values, value)
    return values


def run_on_first(world: World, function: Callable[[], T]) -> T:
    """Run `function` on rank 0 and broadcast its result. An error of ours ends all ranks; only rank 0 reports it."""
    result: T | None = None
    error: CrawlToChatError | None = None
    if world.first:
        try:
            result = function()
        except CrawlToChatError as raised:
            error = raised  # raised below: the other ranks wait in the broadcast
    result, exit_code = broadcast(world, (result, None if error is None else error.exit_code))
    if error is not None:
        raise error
    if exit_code is not None:
        sys.exit(exit_code)
    return cast(T, result)


def barrier(world: World) -> None:
    """Wait until all ranks have called it."""
    if world.size > 1:
        dist.barrier()


def leave() -> None:
    """Leave the process group; nothing but the end of the process may follow."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # A gloo thread that outlives it, in a group that DeepSpeed holds, needs the GIL to let go of its last tensors.
        # Where the interpreter has begun to end by then, it aborts the process (pytorch#179291).
        time.sleep(0.2)


def run(main: Callable[[], None]) -> NoReturn:
    """As `errors.run`, for a `main` that calls `start`: the process leaves its group before it ends."""
    try:
        errors.run(main)
    except SystemExit as ended:
        # After an error NCCL's teardown would wait for the other ranks; the end of this process makes them fail.
        if ended.code in (0, errors.EXIT_RESUME) or (dist.is_initialized() and dist.get_backend() == "gloo"):
            leave()
        raise


def node_error(world: World, error: RuntimeError) -> NodeError | None:
    """The error that names the lost rank and its machine, if `error` means that one is lost.

    gloo and nccl have no error class for it, and report an address at most; without one, all other ranks are named.
    """
    text = str(error)
    if world.size == 1 or not any(sign in text.lower() for sign in ("connection", "peer", "broken pipe", "timed out")):
        return None
    others = [(rank, host, address) for rank, (host, address) in enumerate(world.hosts) if rank != world.rank]
    lost = [other for other in others if f"[{other[2]}]" in text] or others
    names = " or ".join(f"rank {rank} on {host} ({address})" for rank, host, address in lost)
    return NodeError(
        f"rank {world.rank} on {world.hosts[world.rank][0]} lost {names}: {text.splitlines()[0]}",
        "look at the log of that machine; started again, the stage resumes from its last checkpoint",
    )


def _own_address() -> str:
    """The address of this machine on the network by which it reaches rank 0's, of all that it may have."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # UDP: it chooses a route and sends nothing, so any port will do
        return str(probe.getsockname()[0])


def _free_port() -> int:
    """A port that is free now: the fixed default would make two stages on one machine collide."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
