"""Two machines, as two network namespaces: both launchers, a machine that dies, one that stops, and going on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.errors import EXIT_RESUME, NodeError
from tests.training.pretraining import hashes, made, publish, small
from tests.training.support import REPOSITORY, finish, stage_ranks, wait_for_step
from training.launch import processes
from training.launch.processes import World

NODES = {"node-a": "10.177.0.1", "node-b": "10.177.0.2"}
Running = subprocess.Popen[str]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Two namespaces joined by a cable; each process in them has a host name of its own."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, ip and unshare")
    spaces = [f"c2c-{name}-{os.getpid()}" for name in NODES]
    cables = [f"c2c{number}-{os.getpid()}" for number in range(2)]
    try:
        for space in spaces:
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("link", "add", cables[0], "netns", spaces[0], "type", "veth", "peer", "name", cables[1], "netns", spaces[1])
        for space, cable, address in zip(spaces, cables, NODES.values(), strict=True):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", space, "link", "set", cable, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    yield [f"{space} {cable}" for space, cable in zip(spaces, cables, strict=True)]
    for space in spaces:
        kill(space)
        ip("netns", "del", space)


def start(machines: list[str], launcher: str, root: Path, path: Path, *options: str) -> list[Running]:
    """The launcher on both machines, each a session of its own."""
    hosts = root / "hostfile"
    hosts.write_text("".join(f"{name} slots=1\n" for name in NODES))
    port, running = str(processes._free_port()), []
    for rank, (machine, name) in enumerate(zip(machines, NODES, strict=True)):
        space, cable = machine.split()
        where = ["--node_rank", str(rank), "--master_addr", NODES["node-a"], "--master_port", port]
        if launcher == "torchrun":
            how = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        else:
            how = ["-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh"]
        stage = [str(REPOSITORY / "training/pretrain.py"), "--recipe", str(path), "--root", str(root), *options]
        inside = ["ip", "netns", "exec", space, "unshare", "-u", "sh", "-c", 'hostname "$0"; exec "$@"', name]
        env = os.environ | {"GLOO_SOCKET_IFNAME": cable, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        running.append(
            subprocess.Popen(
                [*inside, sys.executable, *how, *where, *stage], env=env, text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    return running


def ends(running: list[Running]) -> list[tuple[int, str]]:
    """Exit code and output of each machine."""
    said = [process.communicate(timeout=300)[0] for process in running]
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


def kill(machine: str, number: signal.Signals = signal.SIGKILL) -> None:
    """All that runs on a machine: torchrun's ranks are sessions of their own."""
    found = subprocess.run(["ip", "netns", "pids", machine.split()[0]], check=True, capture_output=True, text=True)
    for process in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe, and a root in which one machine with two ranks built it undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    path = small(folder, steps=150, evaluate_every=75, checkpoint_every=10)
    publish(folder / "root", path)
    finish(stage_ranks(2, "pretrain.py", folder / "root", path))
    return path, folder / "root"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_machines_make_what_one_makes_also_when_one_dies(
    launcher: str, machines: list[str], whole: tuple[Path, Path], tmp_path: Path
) -> None:
    path, undisturbed = whole
    publish(tmp_path, path)
    running = start(machines, launcher, tmp_path, path)
    wait_for_step(tmp_path, "pretrain", 25, running)
    kill(machines[1])
    (code, said), _ = ends(running)
    assert code not in (0, EXIT_RESUME)
    assert "error: rank 0 on node-a lost rank 1 on node-b (10.177.0.2)" in said
    found = ends(start(machines, launcher, tmp_path, path))
    assert [code for code, _ in found] == [0, 0], found
    assert "goes on from step" in found[0][1]
    assert hashes(tmp_path) == hashes(undisturbed)
    assert made(tmp_path).manifest.content_hash == made(undisturbed).manifest.content_hash


@pytest.mark.slow
def test_a_machine_that_stops_is_named_with_the_stack_of_who_waits(
    machines: list[str], whole: tuple[Path, Path], tmp_path: Path
) -> None:
    path, _ = whole
    publish(tmp_path, path)
    running = start(machines, "torchrun", tmp_path, path, "--step-timeout", "20")
    wait_for_step(tmp_path, "pretrain", 15, running)
    kill(machines[1], signal.SIGSTOP)
    try:
        (code, said), *_ = ends(running[:1])
    finally:
        kill(machines[1])
        running[1].communicate()
    assert code != 0
    assert "takes more than 20 s" in said and "training/engine/engine.py" in said
    assert "rank 1 on node-b does not answer" in said


def test_who_is_lost_is_named_by_address_or_as_all_others() -> None:
    hosts = (("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3"))
    world = World(0, 0, 3, 1, torch.device("cpu"), hosts)
    closed = processes.lost(world, RuntimeError("[gloo/pair.cc:547] Connection closed by peer [10.0.0.3]:1234"))
    assert isinstance(closed, NodeError) and "lost rank 2 on c (10.0.0.3):" in closed.what
    reset = processes.lost(world, RuntimeError("Broken pipe"))
    assert reset is not None and "rank 1 on b (10.0.0.2) or rank 2 on c" in reset.what
    assert processes.lost(world, RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
