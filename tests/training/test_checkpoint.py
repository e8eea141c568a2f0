"""Checkpoints: complete or absent, resumed from bit-identically, and with exports that transformers loads."""

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
from training.engine.checkpoint import COMMIT, Checkpoints
from training.engine.engine import Engine
from training.engine.export import export
from training.engine.losses import token_loss
from training.launch import processes
from training.launch.command import Shape
from training.launch.stop import StopSignal

VOCABULARY, ROWS = 300, 4
TOKENIZER = bpe.Tokenizer.from_bytes(bpe.train(["hello there"], VOCABULARY, "qwen2"))
SHAPES = [Shape(1), Shape(3), Shape(0), Shape(2), *(Shape(stage, offload=True) for stage in (1, 3, 2))]  # type: ignore[arg-type]
CONFIG = Model(preset="qwen3", layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, window=32, tied=True)


def new_engine(kind: str = "muon", total: int = 8, shape: Shape = Shape()) -> Engine:  # noqa: B008  frozen
    section = optimizer(kind, decay=0.5, clip=1.0)
    return Engine(network.build(CONFIG, VOCABULARY, 0, 1, 3), section, total, "fp32", processes.start(1), shape)


def train(engine: Engine, until: int, micro: int = 2) -> list[float]:
    losses = []
    while engine.done < until:
        ids = torch.randint(VOCABULARY, (ROWS, 17), generator=torch.Generator().manual_seed(engine.done))
        rows = ROWS // engine.world.size
        own = ids[engine.world.rank * rows : (engine.world.rank + 1) * rows]
        losses.append(engine.step({"ids": own, "mask": torch.ones_like(own)}, token_loss, micro).loss)
    return losses


def checkpoints(root: Path, engine: Engine, keep: int = 2) -> Checkpoints:
    return Checkpoints(Storage(root), "_work/x", engine.world, keep, TOKENIZER)


def weights(engine: Engine) -> dict[str, Any]:
    engine.refresh_plain()
    return {k: v.clone() for k, v in engine.plain.state_dict().items()}


def equal_weights(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether all tensors are equal to the bit."""
    return all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_resuming_is_bit_identical(kind: str, shape: Shape, tmp_path: Path) -> None:
    whole = new_engine(kind, shape=shape)
    losses = train(whole, 8)
    first = new_engine(kind, shape=shape)
    train(first, 3)
    saved = checkpoints(tmp_path, first)
    torch.manual_seed(77)
    saved.save(first, {"note": [1]})
    drawn, kept = torch.rand(3), weights(first)
    train(first, 5)
    resumed = new_engine(kind, shape=shape)
    torch.manual_seed(1)
    assert saved.load(resumed) == {"note": [1]}
    assert torch.equal(torch.rand(3), drawn)
    assert resumed.done == 3
    assert equal_weights(resumed.plain.state_dict(), kept)  # a finished run that was not published evaluates these
    assert train(resumed, 8) == losses[3:]
    assert equal_weights(weights(resumed), weights(whole))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_any_stage_resumes_from_any_other(kind: str, tmp_path: Path) -> None:
    losses = []
    for step, shape in enumerate([*SHAPES, SHAPES[0]], 1):
        engine = new_engine(kind, shape=shape)
        saved = checkpoints(tmp_path, engine)
        saved.load(engine)
        losses += train(engine, step)
        saved.save(engine, {})
    assert losses == pytest.approx(train(new_engine(kind), len(losses)), rel=1e-5)


def test_the_newest_two_stay_and_incomplete_ones_go(tmp_path: Path) -> None:
    storage, engine = Storage(tmp_path), new_engine()
    saved = checkpoints(tmp_path, engine)
    assert saved.load(engine) is None
    for _ in range(3):
        train(engine, engine.done + 1)
        saved.save(engine, {})
    names = [f"_work/x/checkpoints/step-{n:08d}" for n in (2, 3)]
    assert saved.complete() == names
    storage.remove(f"{names[1]}/{COMMIT}")  # killed before the commit
    resumed = new_engine()
    assert saved.load(resumed) == {}
    assert resumed.done == 2
    assert {Path(name).name for name in names if storage.names(name)} == {"step-00000002"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    storage, engine = Storage(tmp_path), new_engine()
    saved = checkpoints(tmp_path, engine)
    train(engine, 1)
    saved.save(engine, {})
    storage.write("_work/x/checkpoints/step-00000001/rank-00000.pt", b"no")
    with pytest.raises(ArtifactError, match=r"step-00000001: rank-00000.pt is not what was saved"):
        saved.load(new_engine())


def test_every_kept_one_has_an_export(tmp_path: Path) -> None:
    engine = new_engine()
    saved = checkpoints(tmp_path, engine, keep=3)
    for _ in range(4):
        train(engine, engine.done + 1)
        saved.save(engine, {})
    assert [Path(folder).name for folder in saved.complete()] == [f"step-{n:08d}" for n in (2, 3, 4)]
    for folder in saved.complete():
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / folder / "export")
        assert AutoTokenizer.from_pretrained(tmp_path / folder / "export").chat_template
    for ours, theirs in zip(engine.model.parameters(), exported.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def killed_before(number: int, root: Path, work: Callable[[], None]) -> bool:
    """Run `work` in a child that gets SIGKILL at the `number`th time it opens a file to write, or renames one.

    False if the child ended before it came to that.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        return code != 0
    left = number

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "os.rename" or (event == "open" and set(arguments[1] or "") & set("wxa"))
        if writes and str(arguments[0]).startswith(str(root)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(audit)
        work()
        code = 0
    finally:
        os._exit(code)


def test_killed_while_saving_it_resumes_from_the_checkpoint_before(tmp_path: Path) -> None:
    finish(ranks(1, __file__, "kill", tmp_path))  # a process of its own: this one holds too much to be forked


def kill_while_saving(folder: str) -> None:
    """Kill a save at its first write, at its second, and so on; after each the checkpoint before is resumed from."""
    tmp_path = Path(folder)
    losses, engine, resumed = train(new_engine(), 5), new_engine(), new_engine()
    train(engine, 2)
    checkpoints(tmp_path / "begun", engine).save(engine, {})
    train(engine, 4)
    for number in itertools.count(1):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "begun", root)
        saved = checkpoints(root, engine)
        if not killed_before(number, root, lambda saved=saved: saved.save(engine, {})):  # type: ignore[misc]
            break
        assert saved.load(resumed) == {}
        assert resumed.done == 2 and train(resumed, 5) == losses[2:]
        assert all("/step-00000002/" in name for name in saved.storage.names(saved.folder))
    assert number > 12  # writes and renames: of the rank's file, the export, the commit file


def test_a_full_disk_is_an_error_and_no_checkpoint(tmp_path: Path) -> None:
    losses, engine = train(new_engine(), 4), new_engine()
    saved = checkpoints(tmp_path, engine)
    train(engine, 2)
    saved.save(engine, {})
    train(engine, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in (10_000, 100_000):  # the write fails within the header of the rank's file, and within its tensors
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(StorageError, match="cannot be written"):
                saved.save(engine, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("*.tmp"))
    resumed = new_engine()
    assert saved.load(resumed) == {}
    assert resumed.done == 2 and train(resumed, 4) == losses[2:]


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
    """Save on a disk with more and more room, until it succeeds; after each failure the last checkpoint is complete."""
    losses, engine, resumed = train(new_engine(), 4), new_engine(), new_engine()
    root, ballast, failed = disk / "root", disk / "ballast", []
    saved = checkpoints(root, engine)
    train(engine, 2)
    saved.save(engine, {})
    train(engine, 3)
    for room in itertools.count(0, 16_384):
        ballast.unlink(missing_ok=True)
        space = os.statvfs(disk)
        ballast.write_bytes(bytes(space.f_bavail * space.f_frsize - room))
        try:
            saved.save(engine, {})
            break
        except StorageError as raised:
            error = raised
        assert f"the root {root} cannot be written: [Errno 28]" in error.what and "make room" in error.remedy
        failed.append(type(error.__cause__).__name__)
        assert not list(root.rglob("*.tmp")) and not list(root.rglob("step-00000003/commit.json"))
        ballast.unlink()  # room was made: the next attempt
        assert saved.load(resumed) == {}
        # Training on takes time, so only after the first failure of each kind.
        assert resumed.done == 2 and (failed.count(failed[-1]) > 1 or train(resumed, 4) == losses[2:])
    assert set(failed) == {"OSError", "SafetensorError"}
    assert saved.load(resumed) == {}
    assert resumed.done == 3 and train(resumed, 4) == losses[3:]


def test_stop_notices_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop = StopSignal(processes.start(1))
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
    finally:
        signal.signal(signal.SIGTERM, before)


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
# Shapes of three launches in a row: on 2 ranks to step 3, on 1 rank to step 5, on 2 ranks to step 8.
ELASTIC: dict[str, list[Shape]] = {
    "stage 1": [Shape(1)] * 3,
    "stage 2": [Shape(2)] * 3,
    "stage 3": [Shape(3)] * 3,
    "all": [Shape(3), Shape(0), Shape(2, offload=True)],
}
# One launch: the folder of its checkpoints, optimizer, shape, step to train to.
Leg = tuple[Path, str, Shape, int]


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[float]]:
    """Losses of all steps, by optimizer and row of `ELASTIC`."""
    root = tmp_path_factory.mktemp("elastic")
    losses: dict[tuple[str, str], list[float]] = {(kind, name): [] for kind in KINDS for name in ELASTIC}
    for number, (size, until) in enumerate(((2, 3), (1, 5), (2, 8))):
        legs = [(root / f"{kind} {name}", kind, ELASTIC[name][number], until) for kind, name in losses]
        for so_far, more in zip(losses.values(), launch(size, legs), strict=True):
            so_far += more
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ELASTIC)
def test_another_number_of_ranks_resumes(kind: str, name: str, elastic: dict[tuple[str, str], list[float]]) -> None:
    """As one rank to the end, but for rounding: other micro-batches on one rank show how much a step makes of it."""
    whole = train(new_engine(kind), 8)
    orders = [train(new_engine(kind), 8, micro) for micro in (1, 4)]
    noise = max(abs(one - other) / other for order in orders for one, other in zip(order, whole, strict=True))
    assert elastic[kind, name] == pytest.approx(whole, rel=max(1e-5, 4 * noise))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Shape], list[tuple[list[float], Path]]]:
    """By optimizer and shape: losses and folder of eight steps in one launch, and of three and five in two launches."""
    root = tmp_path_factory.mktemp("ranks")
    cases = [(kind, shape) for kind in KINDS for shape in SHAPES]

    def legs(part: str, until: int) -> list[Leg]:
        return [(root / f"{part} {kind} {shape}", kind, shape, until) for kind, shape in cases]

    whole, begun, ended = (launch(2, legs(*leg)) for leg in (("whole", 8), ("parts", 3), ("parts", 8)))
    return {
        case: [(losses, of_whole), (first + second, of_parts)]
        for case, losses, first, second, (of_whole, *_), (of_parts, *_) in zip(
            cases, whole, begun, ended, legs("whole", 8), legs("parts", 8), strict=True
        )
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_ranks_resume_bit_identically(kind: str, shape: Shape, two_ranks: Any) -> None:
    (whole, whole_folder), (parts, parts_folder) = two_ranks[kind, shape]
    assert parts == whole and len(whole) == 8
    one, other = (torch.load(folder / "weights.pt", weights_only=True) for folder in (whole_folder, parts_folder))
    assert equal_weights(one, other)


def launch(size: int, legs: list[Leg]) -> list[list[float]]:
    """Train all legs on `size` ranks, in one launch, since starting it takes longest. Returns the losses of each."""
    encoded = json.dumps([(str(root), kind, dataclasses.asdict(shape), until) for root, kind, shape, until in legs])
    finish(ranks(size, __file__, encoded))
    return [json.loads((root / "losses.json").read_text()) for root, *_ in legs]


def train_leg(root: Path, kind: str, shape: Shape, until: int) -> None:
    """Resume from the folder's checkpoint, train and save; rank 0 writes losses and weights beside it."""
    engine = new_engine(kind, shape=shape)
    saved = checkpoints(root, engine)
    saved.load(engine)
    losses = train(engine, until)
    saved.save(engine, {})
    last = weights(engine)
    if engine.world.first:
        (root / "losses.json").write_text(json.dumps(losses))
        torch.save(last, root / "weights.pt")


def main(legs: str, disk: str = "") -> None:
    if disk:
        full_disk(Path(disk))
        return
    for root, kind, shape, until in json.loads(legs):
        Path(root).mkdir(exist_ok=True)
        train_leg(Path(root), kind, Shape(**shape), until)
    processes.leave()


if __name__ == "__main__":
    kill_while_saving(sys.argv[2]) if sys.argv[1] == "kill" else main(*sys.argv[1:])
