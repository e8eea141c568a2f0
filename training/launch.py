"""One process of a training stage: its rank, its device, its process group, its command line.

`deepspeed`, `torchrun` or nothing at all starts it; only RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are
read, and where they are absent there is one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

import training  # noqa: F401  sets TORCH_EXTENSIONS_DIR
from pipeline import artifact, errors, recipe
from pipeline.errors import CrawlToChatError, MachineError, NodeError, RecipeError
from pipeline.storage import Storage

T = TypeVar("T")

# torch's own default; DeepSpeed's fell to 10 minutes (DeepSpeed#8253), less than a first compile on a slow disk.
TIMEOUT = datetime.timedelta(minutes=30)
STEP_TIMEOUT = 1500.0  # seconds: less than TIMEOUT, after which collectives give up without saying where


@dataclass(frozen=True)
class Shape:
    """How a model is spread over a launch. No part of a fingerprint: any shape makes the same model, but for rounding.

    `zero_stage`: 1 shares the optimizer's state among the ranks, 2 gradients too, 3 weights too; below 3 B parameters
    more than 1 buys little. `offload`: optimizer state and step in the CPU's memory. `micro_batch`: rows at once a
    rank; None: as many as `engine.LOGIT_BYTES` lets. `fused_loss`: logits for some tokens at a time. `recompute`: a
    layer's activations are made again in backward, not kept. `compile`: layers by torch.compile.
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: bool = False
    micro_batch: int | None = None
    fused_loss: bool = False
    recompute: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Job:
    """What the command line says."""

    recipe: recipe.Recipe
    storage: Storage
    run: str
    input: str | None
    force: bool
    shape: Shape
    step_timeout: float


@dataclass(frozen=True)
class World:
    """This process among all of the launch."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    device: torch.device
    hosts: tuple[tuple[str, str], ...] = ()  # name and address of each rank's machine, where there are several ranks

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
    shape = parser.add_argument_group("shape of the launch", "changes speed and memory, not what is built")
    shape.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=1, help="ZeRO stage; default: 1")
    shape.add_argument("--offload", action="store_true", help="keep the optimizer in the CPU's memory")
    shape.add_argument("--micro-batch", type=int, help="most rows a rank computes at once")
    shape.add_argument("--fused-loss", action="store_true", help="logits for some tokens at a time")
    shape.add_argument("--recompute", action="store_true", help="make activations again in backward, for memory")
    shape.add_argument("--compile", action="store_true", help="torch.compile each layer")
    parser.add_argument(
        "--step-timeout", type=float, default=STEP_TIMEOUT, help="seconds; a step that takes longer ends the launch"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed appends it; LOCAL_RANK says it
    given = parser.parse_args(arguments)
    if given.offload and not given.zero_stage:
        raise RecipeError("--offload needs a ZeRO stage of 1 to 3", "leave out --zero-stage 0")
    if given.compile and given.zero_stage == 3:
        raise RecipeError(
            "--compile does not go with --zero-stage 3: each layer's hooks would be compiled anew", "leave out one"
        )
    if given.micro_batch is not None and given.micro_batch < 1:
        raise RecipeError(f"--micro-batch {given.micro_batch} is no number of rows", "give 1 or more")
    chosen = recipe.load(given.recipe)
    run = artifact.run_name(given.run or chosen.name)
    settings = Shape(
        given.zero_stage, given.offload, given.micro_batch, given.fused_loss, given.recompute, given.compile
    )
    return Job(chosen, Storage(given.root), run, given.input, given.force, settings, given.step_timeout)


def parse_of(program: str) -> tuple[Job, str]:
    """As `parse`, for a stage that looks at a model: `--of` says which of the run's stages made it."""
    parser = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("--of", required=True, choices=("pretrain", "sft", "rl"))
    given, others = parser.parse_known_args()
    return parse(program, others), given.of


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
    world = World(rank, local_rank, size, local_size, device)
    if size == 1:
        return world
    return dataclasses.replace(world, hosts=tuple(gather(world, (socket.gethostname(), _own_address()))))


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


def gather(world: World, value: T) -> list[T]:
    """What each rank holds, by rank, on all ranks."""
    found: list[Any] = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(found, value)
    return found


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
        # Where one rank alone fails, nccl may wait for the others, who do not come: the end of the process tells them.
        if ended.code in (0, errors.EXIT_RESUME) or (dist.is_initialized() and dist.get_backend() == "gloo"):
            stop()
        raise


def lost(world: World, error: RuntimeError) -> NodeError | None:
    """What to say where `error` means that another rank is gone: gloo and nccl tell its address at most."""
    text = str(error)
    if world.size == 1 or not any(sign in text.lower() for sign in ("connection", "peer", "broken pipe", "timed out")):
        return None
    others = [(rank, host, at) for rank, (host, at) in enumerate(world.hosts) if rank != world.rank]
    named = [one for one in others if f"[{one[2]}]" in text] or others
    who = " or ".join(f"rank {rank} on {host} ({at})" for rank, host, at in named)
    return NodeError(
        f"rank {world.rank} on {world.hosts[world.rank][0]} lost {who}: {text.splitlines()[0]}",
        "look at the log of that machine; started again, the stage goes on from its last checkpoint",
    )


def _own_address() -> str:
    """The address by which this machine reaches rank 0's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # nothing is sent
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
