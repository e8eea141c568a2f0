"""What survives a kill, and what others load.

Checkpoints lie in `<work>/checkpoints/step-N/`: `rank-R.pt` of every rank (weights, optimizer, generators), `export/`,
and `commit.json`, written last, with the hashes of all. Without a commit file a checkpoint does not exist, and is
removed. Going on with a launch of the same shape is bit-identical; any other reads the same files (zero.py).
"""

from __future__ import annotations

import io
import json
import signal
from typing import Any

import torch
import torch.distributed as dist

from pipeline.artifact import File, describe
from pipeline.errors import ArtifactError, Interrupted
from pipeline.storage import Storage
from tokenizer.bpe import Tokenizer
from training.engine.engine import Engine
from training.engine.export import write_export
from training.launch import processes
from training.launch.processes import World

COMMIT = "commit.json"
EXPORT = "export"


class Checkpoints:
    """The checkpoints of one fingerprint. All ranks call `save` and `load` together.

    The newest `keep` stay, and the last that has taken no more than `before` steps: of a rate that is held and then
    falls, the one from which a longer run goes on.
    """

    def __init__(self, storage: Storage, work: str, world: World, keep: int, tokenizer: Tokenizer) -> None:
        self.storage, self.folder, self.world = storage, f"{work}/checkpoints", world
        self.keep, self.tokenizer = keep, tokenizer
        self.before: int | None = None

    def complete(self) -> list[str]:
        """Folders of the complete ones, oldest first."""
        ends = f"/{COMMIT}"
        return [name.removesuffix(ends) for name in self.storage.names(self.folder) if name.endswith(ends)]

    def last(self, step: int) -> str | None:
        """The newest complete one that has taken no more than `step` steps."""
        return max((folder for folder in self.complete() if int(folder.rpartition("-")[2]) <= step), default=None)

    def save(self, engine: Engine, position: dict[str, Any]) -> None:
        """Save after step `engine.done`. `position`: plain data of the stage, returned by `load`."""
        folder = f"{self.folder}/step-{engine.done:08d}"
        if self.world.first:
            self.storage.remove(f"{folder}/{COMMIT}")  # saved again, by a launch of another shape perhaps
        processes.barrier(self.world)
        state = engine.state() | {"torch": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        write_tensors(self.storage, f"{folder}/{_of_rank(self.world.rank)}", state)
        files = [describe(self.storage, folder, _of_rank(self.world.rank), rows=1)]
        engine.refresh_plain()
        if self.world.first:
            exported = write_export(self.storage, f"{folder}/{EXPORT}", self.folder, engine.plain, self.tokenizer)
            files += [file.model_copy(update={"path": f"{EXPORT}/{file.path}"}) for file in exported]
        files = [file for each in processes.all_gather(self.world, files) for file in each]
        if self.world.first:
            record = {
                "step": engine.done,
                "ranks": self.world.size,
                "kept_as": _kept_as(engine),
                "files": [file.model_dump() for file in files],
                "position": position,
            }
            self.storage.write(f"{folder}/{COMMIT}", json.dumps(record).encode())
            self._clean()
        processes.barrier(self.world)

    def load(self, engine: Engine, start: str | None = None) -> dict[str, Any] | None:
        """Bring `engine` to the newest complete checkpoint and return its `position`; None where there is none.

        `start`: a checkpoint of another fingerprint to begin with where this one has none yet.
        """
        if self.world.first:
            self._clean()
        processes.barrier(self.world)
        found = processes.broadcast(self.world, self.complete()) or ([start] if start else [])
        if not found:
            return None
        folder = found[-1]
        record = read_commit(self.storage, folder)
        self._verify(folder, [File.model_validate(file) for file in record["files"]])
        own = self.world.rank % record["ranks"]
        needed = list(range(record["ranks"]))
        if not record["kept_as"][0]:  # stage 0: rank 0 has it all
            needed = [0]
        elif record["ranks"] == self.world.size and record["kept_as"] == _kept_as(engine):
            needed = [own]
        states = {rank: self._read(f"{folder}/{_of_rank(rank)}") for rank in {own, *needed}}
        engine.load_state([states[rank] for rank in needed])
        torch.set_rng_state(states[own]["torch"])
        if "cuda" in states[own] and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(states[own]["cuda"])
        if self.world.first:
            print(f"goes on from step {record['step']} ({folder})", flush=True)
        position: dict[str, Any] = record["position"]
        return position

    def _verify(self, folder: str, files: list[File]) -> None:
        """Raise `ArtifactError` on all ranks where a file is not what was saved; the ranks share the hashing."""
        wrong = [
            file.path
            for file in files[self.world.rank :: self.world.size]
            if self.storage.size(f"{folder}/{file.path}") != file.bytes
            or self.storage.sha256(f"{folder}/{file.path}") != file.sha256
        ]
        wrong = [path for each in processes.all_gather(self.world, wrong) for path in each]

        def refuse() -> None:
            if wrong:
                raise ArtifactError(
                    f"{self.storage.path(folder)}: {', '.join(sorted(wrong))} is not what was saved",
                    "remove the folder to go on from an older checkpoint",
                )

        processes.run_on_first(self.world, refuse)

    def _clean(self) -> None:
        """Remove all complete checkpoints but those that stay, and what was never completed."""
        kept: set[str | None] = set(self.complete()[-self.keep :])
        if self.before is not None:
            kept.add(self.last(self.before))
        start = len(self.folder) + 1
        for name in {name[start:].split("/")[0] for name in self.storage.names(self.folder)}:
            if (folder := f"{self.folder}/{name}") not in kept:
                self.storage.remove(f"{folder}/{COMMIT}")  # first: half a checkpoint must not look like one
                self.storage.remove_tree(folder)

    def _read(self, name: str) -> dict[str, Any]:
        source = self.storage.local_path(name) if self.storage.local else io.BytesIO(self.storage.read(name))
        data: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True, mmap=self.storage.local)
        return data


def write_tensors(storage: Storage, name: str, data: dict[str, Any]) -> None:
    """`torch.save` to a file below the root."""
    with storage.writing(name) as stream:
        try:
            torch.save(data, stream)
        except RuntimeError as error:  # torch closes its archive, and hides the disk's error behind its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _of_rank(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _kept_as(engine: Engine) -> list[Any]:
    """What decides which part of the state a rank holds."""
    return [engine.shape.zero_stage, engine.shape.offload]


def read_commit(storage: Storage, folder: str) -> dict[str, Any]:
    """`commit.json` of a complete checkpoint."""
    if not storage.exists(f"{folder}/{COMMIT}"):
        raise ArtifactError(
            f"{storage.path(folder)} holds no complete checkpoint", "name a folder checkpoints/step-N with commit.json"
        )
    record: dict[str, Any] = json.loads(storage.read(f"{folder}/{COMMIT}"))
    return record


class Stop:
    """Notices SIGTERM; the ranks agree on it between two steps, since it does not reach them at once."""

    def __init__(self, world: World) -> None:
        self.world, self.asked = world, False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def agreed(self) -> bool:
        """True on all ranks once one of them was asked to stop. All ranks call it together."""
        if self.world.size == 1:
            return self.asked
        flag = torch.tensor(int(self.asked), device=self.world.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)


def interrupted(stage: str, step: int) -> Interrupted:
    """The error to raise once a stage has saved because it was asked to stop."""
    return Interrupted(f"{stage} was asked to stop and saved step {step}", "start it again: it goes on from there")
