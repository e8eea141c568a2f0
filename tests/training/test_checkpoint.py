"""Checkpoints: complete or absent, bit-identical to go on from, and exports that transformers loads."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from inference import network
from pipeline.errors import ArtifactError, StorageError
from pipeline.recipe import Model
from pipeline.storage import Storage
from tests.training.support import REPOSITORY, finish, ranks
from tests.training.test_engine import optimizer
from tokenizer import bpe
from tokenizer.chat import IM_END, IM_START, PAD, render
from training.engine import checkpoint
from training.engine.checkpoint import COMMIT, Checkpoints
from training.engine.engine import Engine
from training.engine.export import export
from training.engine.losses import token_loss
from training.launch import processes
from training.launch.command import Shape

VOCABULARY, ROWS = 300, 4
TOKENIZER = bpe.Tokenizer.from_bytes(bpe.train(["hello there"], VOCABULARY, "qwen2"))
SHAPES = [Shape(1), Shape(3), Shape(0), Shape(2), *(Shape(stage, offload=True) for stage in (1, 3, 2))]  # type: ignore[arg-type]
CONFIG = Model(preset="qwen3", layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, window=32, tied=True)


def engine(kind: str = "muon", total: int = 8, shape: Shape = Shape()) -> Engine:  # noqa: B008  frozen
    section = optimizer(kind, decay=0.5, clip=1.0)
    return Engine(network.build(CONFIG, VOCABULARY, 0, 1, 3), section, total, "fp32", processes.start(1), shape)


def train(made: Engine, until: int, micro: int = 2) -> list[float]:
    losses = []
    while made.done < until:
        ids = torch.randint(VOCABULARY, (ROWS, 17), generator=torch.Generator().manual_seed(made.done))
        rows = ROWS // made.world.size
        own = ids[made.world.rank * rows : (made.world.rank + 1) * rows]
        losses.append(made.step({"ids": own, "mask": torch.ones_like(own)}, token_loss, micro).loss)
    return losses


def checkpoints(root: Path, made: Engine, keep: int = 2) -> Checkpoints:
    return Checkpoints(Storage(root), "_work/x", made.world, keep, TOKENIZER)


def weights(made: Engine) -> dict[str, Any]:
    made.refresh_plain()
    return {k: v.clone() for k, v in made.plain.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_going_on_is_bit_identical(kind: str, shape: Shape, tmp_path: Path) -> None:
    whole = engine(kind, shape=shape)
    losses = train(whole, 8)
    first = engine(kind, shape=shape)
    train(first, 3)
    saved = checkpoints(tmp_path, first)
    torch.manual_seed(77)
    saved.save(first, {"note": [1]})
    drawn, kept = torch.rand(3), weights(first)
    train(first, 5)
    again = engine(kind, shape=shape)
    torch.manual_seed(1)
    assert saved.load(again) == {"note": [1]}
    assert torch.equal(torch.rand(3), drawn)
    assert again.done == 3
    assert same(again.plain.state_dict(), kept)  # a run that was finished but not published measures these
    assert train(again, 8) == losses[3:]
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_any_stage_goes_on_from_any_other(kind: str, tmp_path: Path) -> None:
    losses = []
    for step, shape in enumerate([*SHAPES, SHAPES[0]], 1):
        made = engine(kind, shape=shape)
        saved = checkpoints(tmp_path, made)
        saved.load(made)
        losses += train(made, step)
        saved.save(made, {})
    assert losses == pytest.approx(train(engine(kind), len(losses)), rel=1e-5)


def test_the_last_two_stay_and_half_ones_go(tmp_path: Path) -> None:
    storage, made = Storage(tmp_path), engine()
    saved = checkpoints(tmp_path, made)
    assert saved.load(made) is None
    for _ in range(3):
        train(made, made.done + 1)
        saved.save(made, {})
    names = [f"_work/x/checkpoints/step-{n:08d}" for n in (2, 3)]
    assert saved.complete() == names
    storage.remove(f"{names[1]}/{COMMIT}")  # killed before the commit
    again = engine()
    assert saved.load(again) == {}
    assert again.done == 2
    assert {Path(name).name for name in names if storage.names(name)} == {"step-00000002"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    storage, made = Storage(tmp_path), engine()
    saved = checkpoints(tmp_path, made)
    train(made, 1)
    saved.save(made, {})
    storage.write("_work/x/checkpoints/step-00000001/rank-00000.pt", b"no")
    with pytest.raises(ArtifactError, match=r"step-00000001: rank-00000.pt is not what was saved"):
        saved.load(engine())


def test_every_kept_one_has_an_export(tmp_path: Path) -> None:
    made = engine()
    saved = checkpoints(tmp_path, made, keep=3)
    for _ in range(4):
        train(made, made.done + 1)
        saved.save(made, {})
    assert [Path(folder).name for folder in saved.complete()] == [f"step-{n:08d}" for n in (2, 3, 4)]
    for folder in saved.complete():
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / folder / "export")
        assert AutoTokenizer.from_pretrained(tmp_path / folder / "export").chat_template
    for ours, theirs in zip(made.model.parameters(), exported.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def killed_before(number: int, root: Path, work: Callable[[], None]) -> bool:
    """Do `work` in a child that gets SIGKILL when it opens a file to write, or renames one, the `number`th time."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        return code != 0
    left = number

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "os.rename" or (event == "open" and set(arguments[1] or "") & set("wxa"))
        if writes and str(arguments[0]).startswith(str(root)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(look)
        work()
        code = 0
    finally:
        os._exit(code)


def test_killed_while_saving_it_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    finish(ranks(1, __file__, "kill", tmp_path))  # a process of its own: this one holds too much to be forked


def kill_while_saving(folder: str) -> None:
    """Again and again, one write later each time, until none is left to be killed at."""
    tmp_path = Path(folder)
    losses, made, again = train(engine(), 5), engine(), engine()
    train(made, 2)
    checkpoints(tmp_path / "begun", made).save(made, {})
    train(made, 4)
    for number in itertools.count(1):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "begun", root)
        saved = checkpoints(root, made)
        if not killed_before(number, root, lambda saved=saved: saved.save(made, {})):  # type: ignore[misc]
            break
        assert saved.load(again) == {}
        assert again.done == 2 and train(again, 5) == losses[2:]
        assert all("/step-00000002/" in name for name in saved.storage.names(saved.folder))
    assert number > 12  # of rank, export and commit


def test_a_full_disk_is_an_error_and_no_checkpoint(tmp_path: Path) -> None:
    losses, made = train(engine(), 4), engine()
    saved = checkpoints(tmp_path, made)
    train(made, 2)
    saved.save(made, {})
    train(made, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in (10_000, 100_000):  # in the middle of the state's head, and of its numbers
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(StorageError, match="cannot be written"):
                saved.save(made, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("*.tmp"))
    again = engine()
    assert saved.load(again) == {}
    assert again.done == 2 and train(again, 4) == losses[2:]


@pytest.mark.slow
def test_a_disk_that_is_full_anywhere_in_a_save_is_an_error_and_no_checkpoint(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a disk of its own needs namespaces")
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=4m none "$0" && exec "$@"', tmp_path]
    env = {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}
    env |= {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*mounted, sys.executable, __file__, "full", tmp_path], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def full_disk(disk: Path) -> None:
    """Saves with more and more room, until one succeeds."""
    losses, made, again = train(engine(), 4), engine(), engine()
    root, ballast, failed = disk / "root", disk / "ballast", []
    saved = checkpoints(root, made)
    train(made, 2)
    saved.save(made, {})
    train(made, 3)
    for room in itertools.count(0, 16_384):
        ballast.unlink(missing_ok=True)
        space = os.statvfs(disk)
        ballast.write_bytes(bytes(space.f_bavail * space.f_frsize - room))
        try:
            saved.save(made, {})
            break
        except StorageError as error:
            found = error
        assert f"the root {root} cannot be written: [Errno 28]" in found.what and "make room" in found.remedy
        failed.append(type(found.__cause__).__name__)
        assert not list(root.rglob("*.tmp")) and not list(root.rglob("step-00000003/commit.json"))
        ballast.unlink()  # room was made: a new start
        assert saved.load(again) == {}
        assert again.done == 2 and (failed.count(failed[-1]) > 1 or train(again, 4) == losses[2:])
    assert set(failed) == {"OSError", "SafetensorError"}
    assert saved.load(again) == {}
    assert again.done == 3 and train(again, 4) == losses[3:]


def test_stop_notices_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop = checkpoint.Stop(processes.start(1))
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert checkpoint.interrupted("pretrain", 3).exit_code == 85


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_export_is_what_transformers_loads(preset: str, tied: bool, tmp_path: Path) -> None:
    tokenizer = bpe.Tokenizer.from_bytes(bpe.train(["hello there, what is 12 + 7?"] * 9, 512, "qwen2"))
    config = CONFIG.model_copy(update={"preset": preset, "tied": tied, "kv_heads": CONFIG.heads})
    net = network.build(config, tokenizer.vocabulary, tokenizer.end_of_text, tokenizer.special(PAD), 1)
    export(net, tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, text = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.arange(9)[None]
    assert loaded.config.model_type == preset and loaded.config.tie_word_embeddings == tied
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, net(input_ids=ids).logits, rtol=0, atol=1e-4)
    ends = [tokenizer.special(IM_END), tokenizer.end_of_text]
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert settings.eos_token_id == ends
    assert settings.pad_token_id == text.pad_token_id == tokenizer.special(PAD)
    assert text.eos_token_id == ends[0] and settings.pad_token_id not in ends
    messages: Any = [{"role": "user", "content": "what is 12 + 7?"}]
    rendered = text.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert rendered == render(messages, tokenizer).ids
    assert rendered[0] == tokenizer.special(IM_START)
    first = (tmp_path / "model.safetensors").read_bytes()
    export(loaded, tokenizer, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first


KINDS = ("adamw", "muon")
# Shapes of the launches that go to step 3, 5 and 8, on 2, 1 and 2 ranks.
ELASTIC: dict[str, list[Shape]] = {
    "stage 1": [Shape(1)] * 3,
    "stage 2": [Shape(2)] * 3,
    "stage 3": [Shape(3)] * 3,
    "all": [Shape(3), Shape(0), Shape(2, offload=True)],
}
# A folder with a checkpoint, and how a launch goes on from there: optimizer, shape, step to go to.
Leg = tuple[Path, str, Shape, int]


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[float]]:
    """Losses of all steps, by optimizer and row of `ELASTIC`."""
    root, found = tmp_path_factory.mktemp("elastic"), {(kind, name): [] for kind in KINDS for name in ELASTIC}
    for number, (size, until) in enumerate(((2, 3), (1, 5), (2, 8))):
        legs = [(root / f"{kind} {name}", kind, ELASTIC[name][number], until) for kind, name in found]
        for losses, more in zip(found.values(), ranked(size, legs), strict=True):
            losses += more
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ELASTIC)
def test_another_number_of_ranks_goes_on(kind: str, name: str, elastic: dict[tuple[str, str], list[float]]) -> None:
    """As one rank all the way, but for rounding: how much a step makes of it, the order of sums alone shows."""
    whole = train(engine(kind), 8)
    orders = [train(engine(kind), 8, micro) for micro in (1, 4)]
    noise = max(abs(one - other) / other for order in orders for one, other in zip(order, whole, strict=True))
    assert elastic[kind, name] == pytest.approx(whole, rel=max(1e-5, 4 * noise))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Shape], list[tuple[list[float], Path]]]:
    """By optimizer and shape: losses and folder of eight steps, and of three and then, in another launch, five more."""
    root = tmp_path_factory.mktemp("ranks")
    cases = [(kind, shape) for kind in KINDS for shape in SHAPES]

    def legs(part: str, until: int) -> list[Leg]:
        return [(root / f"{part} {kind} {shape}", kind, shape, until) for kind, shape in cases]

    whole, begun, ended = (ranked(2, legs(*leg)) for leg in (("whole", 8), ("parts", 3), ("parts", 8)))
    return {
        case: [(losses, of_whole), (first + second, of_parts)]
        for case, losses, first, second, (of_whole, *_), (of_parts, *_) in zip(
            cases, whole, begun, ended, legs("whole", 8), legs("parts", 8), strict=True
        )
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_ranks_go_on_bit_identically(kind: str, shape: Shape, two_ranks: Any) -> None:
    (whole, at), (parts, then) = two_ranks[kind, shape]
    assert parts == whole and len(whole) == 8
    one, other = (torch.load(folder / "weights.pt", weights_only=True) for folder in (at, then))
    assert same(one, other)


def ranked(size: int, legs: list[Leg]) -> list[list[float]]:
    """One launch of so many ranks that goes all these legs, one after the other; the losses of the steps of each."""
    told = json.dumps([(str(root), kind, dataclasses.asdict(shape), until) for root, kind, shape, until in legs])
    finish(ranks(size, __file__, told))
    return [json.loads((root / "losses.json").read_text()) for root, *_ in legs]


def go(root: Path, kind: str, shape: Shape, until: int) -> None:
    """One leg."""
    made = engine(kind, shape=shape)
    saved = checkpoints(root, made)
    saved.load(made)
    losses = train(made, until)
    saved.save(made, {})
    last = weights(made)
    if made.world.first:
        (root / "losses.json").write_text(json.dumps(losses))
        torch.save(last, root / "weights.pt")


def main(told: str, disk: str = "") -> None:
    if disk:
        full_disk(Path(disk))
        return
    for root, kind, shape, until in json.loads(told):
        Path(root).mkdir(exist_ok=True)
        go(Path(root), kind, Shape(**shape), until)
    processes.leave()


if __name__ == "__main__":
    kill_while_saving(sys.argv[2]) if sys.argv[1] == "kill" else main(*sys.argv[1:])
