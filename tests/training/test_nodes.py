"""Two machines, as two network namespaces: both launchers, a machine that dies, one that hangs, and resuming."""

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
from tests.training.pretraining import hashes, publish, small
from tests.training.support import REPOSITORY, content_hash, finish, stage_ranks, wait_for_step
from training.launch import processes
from training.launch.processes import World

NODES = {"node-a": "10.177.0.1", "node-b": "10.177.0.2"}
Running = subprocess.Popen[str]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Two network namespaces joined by a veth pair, each as "namespace interface"."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, ip and unshare")
    spaces = [f"c2c-{name}-{os.getpid()}" for name in NODES]
    interfaces = [f"c2c{number}-{os.getpid()}" for number in range(2)]
    try:
        for space in spaces:
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        peer = ["peer", "name", interfaces[1], "netns", spaces[1]]
        ip("link", "add", interfaces[0], "netns", spaces[0], "type", "veth", *peer)
        for space, interface, address in zip(spaces, interfaces, NODES.values(), strict=True):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", interface)
            ip("-n", space, "link", "set", interface, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    yield [f"{space} {interface}" for space, interface in zip(spaces, interfaces, strict=True)]
    for space in spaces:
        kill(space)
        ip("netns", "del", space)


def start(machines: list[str], launcher: str, root: Path, path: Path, *options: str) -> list[Running]:
    """Start the launcher on both machines, each a session of its own, with a host name of its own."""
    hosts = root / "hostfile"
    hosts.write_text("".join(f"{name} slots=1\n" for name in NODES))
    port, running = str(processes._free_port()), []
    for rank, (machine, name) in enumerate(zip(machines, NODES, strict=True)):
        space, interface = machine.split()
        where = ["--node_rank", str(rank), "--master_addr", NODES["node-a"], "--master_port", port]
        if launcher == "torchrun":
            how = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        else:
            how = ["-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh"]
        stage = [str(REPOSITORY / "training/pretrain.py"), "--recipe", str(path), "--root", str(root), *options]
        inside = ["ip", "netns", "exec", space, "unshare", "-u", "sh", "-c", 'hostname "$0"; exec "$@"', name]
        env = os.environ | {"GLOO_SOCKET_IFNAME": interface, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        running.append(
            subprocess.Popen(
                [*inside, sys.executable, *how, *where, *stage], env=env, text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    return running


def wait(running: list[Running]) -> list[tuple[int, str]]:
    """Wait for the launcher on each machine. Returns its exit code and output."""
    outputs = [process.communicate(timeout=300)[0] for process in running]
    return [(process.returncode, text) for process, text in zip(running, outputs, strict=True)]


def kill(machine: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to all processes of a machine: torchrun's ranks are sessions of their own."""
    pids = subprocess.run(["ip", "netns", "pids", machine.split()[0]], check=True, capture_output=True, text=True)
    for process in pids.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe, and a root in which one machine with two ranks ran it without a kill."""
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
    (code, output), _ = wait(running)
    assert code not in (0, EXIT_RESUME)
    assert "error: rank 0 on node-a lost rank 1 on node-b (10.177.0.2)" in output
    results = wait(start(machines, launcher, tmp_path, path))
    assert [code for code, _ in results] == [0, 0], results
    assert "resumes from step" in results[0][1]
    assert hashes(tmp_path) == hashes(undisturbed)
    assert content_hash(tmp_path, "pretrain") == content_hash(undisturbed, "pretrain")


@pytest.mark.slow
def test_a_machine_that_hangs_is_named_with_the_stack_of_the_rank_that_waits(
    machines: list[str], whole: tuple[Path, Path], tmp_path: Path
) -> None:
    path, _ = whole
    publish(tmp_path, path)
    running = start(machines, "torchrun", tmp_path, path, "--step-timeout", "20")
    wait_for_step(tmp_path, "pretrain", 15, running)
    kill(machines[1], signal.SIGSTOP)
    try:
        (code, output), *_ = wait(running[:1])
    finally:
        kill(machines[1])
        running[1].communicate()
    assert code != 0
    assert "takes more than 20 s" in output and "training/engine/engine.py" in output
    assert "rank 1 on node-b does not answer" in output


def test_a_lost_rank_is_named_by_its_address_or_as_all_others() -> None:
    hosts = (("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3"))
    world = World(0, 0, 3, 1, torch.device("cpu"), hosts)
    closed = processes.node_error(world, RuntimeError("[gloo/pair.cc:547] Connection closed by peer [10.0.0.3]:1234"))
    assert isinstance(closed, NodeError) and "lost rank 2 on c (10.0.0.3):" in closed.what
    reset = processes.node_error(world, RuntimeError("Broken pipe"))
    assert reset is not None and "rank 1 on b (10.0.0.2) or rank 2 on c" in reset.what
    assert processes.node_error(world, RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
