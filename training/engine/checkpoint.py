"""Checkpoints: what a killed run resumes from, each with an export that others load.

They lie in `<work>/checkpoints/step-N/`: `rank-R.pt` of every rank (weights, optimizer, generators), `export/`, and
`commit.json`, written last, with the hashes of all. Without a commit file a checkpoint does not exist, and is removed.
A launch of the same shape resumes bit-identically; any other reads the same files (zero.py).
"""

from __future__ import annotations

import io
import json
from typing import Any

import torch

from pipeline.artifact import File, describe
from pipeline.errors import ArtifactError
from pipeline.inputs import COMMIT
from pipeline.storage import Storage
from tokenizer.bpe import Tokenizer
from training.engine.engine import Engine
from training.engine.export import write_export
from training.launch import processes
from training.launch.processes import World

EXPORT = "export"


class Checkpoints:
    """The checkpoints of one fingerprint. All ranks call `save` and `load` together.

    The newest `keep` stay, and the newest that has taken no more than `keep_until` steps: where the learning rate is
    constant and then decays, that is the last before the decay, from which a longer run continues.
    """

    def __init__(self, storage: Storage, work: str, world: World, keep: int, tokenizer: Tokenizer) -> None:
        self.storage, self.folder, self.world = storage, f"{work}/checkpoints", world
        self.keep, self.tokenizer = keep, tokenizer
        self.keep_until: int | None = None

    def complete(self) -> list[str]:
        """Folders of the complete checkpoints, oldest first."""
        commit = f"/{COMMIT}"
        return [name.removesuffix(commit) for name in self.storage.names(self.folder) if name.endswith(commit)]

    def newest(self, step: int) -> str | None:
        """The newest complete checkpoint that has taken no more than `step` steps."""
        return max((folder for folder in self.complete() if int(folder.rpartition("-")[2]) <= step), default=None)

    def save(self, engine: Engine, position: dict[str, Any]) -> None:
        """Save after step `engine.done`. `position`: plain data of the stage, returned by `load`."""
        folder = f"{self.folder}/step-{engine.done:08d}"
        # 1. A launch of another shape may have saved this step before: its commit file must not vouch for new files.
        if self.world.first:
            self.storage.remove(f"{folder}/{COMMIT}")
        processes.barrier(self.world)
        # 2. Each rank saves its part of the state and its generators.
        state = engine.state() | {"torch": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        write_tensors(self.storage, f"{folder}/{_rank_file(self.world.rank)}", state)
        files = [describe(self.storage, folder, _rank_file(self.world.rank), rows=1)]
        # 3. Rank 0 exports the model. All ranks refresh it, since at ZeRO 3 each holds a part of the weights.
        engine.refresh_plain()
        if self.world.first:
            exported = write_export(self.storage, f"{folder}/{EXPORT}", self.folder, engine.plain, self.tokenizer)
            files += [file.model_copy(update={"path": f"{EXPORT}/{file.path}"}) for file in exported]
        # 4. Once all ranks have written, the commit file makes it a checkpoint; then older ones may go.
        files = [file for of_rank in processes.all_gather(self.world, files) for file in of_rank]
        if self.world.first:
            commit = {
                "step": engine.done,
                "ranks": self.world.size,
                "kept_as": _partitioning(engine),
                "files": [file.model_dump() for file in files],
                "position": position,
            }
            self.storage.write(f"{folder}/{COMMIT}", json.dumps(commit).encode())
            self._clean()
        processes.barrier(self.world)

    def load(self, engine: Engine, start: str | None = None) -> dict[str, Any] | None:
        """Load the newest complete checkpoint into `engine` and return its `position`; None if there is none.

        `start`: a checkpoint of another fingerprint to begin with while this one has none yet.
        """
        # 1. Which checkpoint: rank 0 lists the folders for all, lest ranks see different states of a store.
        if self.world.first:
            self._clean()
        processes.barrier(self.world)
        complete = processes.broadcast(self.world, self.complete()) or ([start] if start else [])
        if not complete:
            return None
        folder = complete[-1]
        commit = read_commit(self.storage, folder)
        self._verify(folder, [File.model_validate(file) for file in commit["files"]])
        # 2. Which ranks' files this rank needs: in general all, to assemble its own part from theirs.
        own = self.world.rank % commit["ranks"]
        needed = list(range(commit["ranks"]))
        if not commit["kept_as"][0]:  # stage 0: rank 0 saved the whole state for all
            needed = [0]
        elif commit["ranks"] == self.world.size and commit["kept_as"] == _partitioning(engine):
            needed = [own]
        # 3. The state, and the generators: those of this rank, or of another where there are more ranks than before.
        states = {rank: self._read(f"{folder}/{_rank_file(rank)}") for rank in {own, *needed}}
        engine.load_state([states[rank] for rank in needed])
        torch.set_rng_state(states[own]["torch"])
        if "cuda" in states[own] and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(states[own]["cuda"])
        if self.world.first:
            print(f"resumes from step {commit['step']} ({folder})", flush=True)
        position: dict[str, Any] = commit["position"]
        return position

    def _verify(self, folder: str, files: list[File]) -> None:
        """Raise `ArtifactError` on all ranks where a file is not what was saved; the ranks share the hashing."""
        wrong = [
            file.path
            for file in files[self.world.rank :: self.world.size]
            if self.storage.size(f"{folder}/{file.path}") != file.bytes
            or self.storage.sha256(f"{folder}/{file.path}") != file.sha256
        ]
        wrong = [path for of_rank in processes.all_gather(self.world, wrong) for path in of_rank]

        def refuse() -> None:
            if wrong:
                raise ArtifactError(
                    f"{self.storage.path(folder)}: {', '.join(sorted(wrong))} is not what was saved",
                    "remove the folder to resume from an older checkpoint",
                )

        processes.run_on_first(self.world, refuse)

    def _clean(self) -> None:
        """Remove incomplete checkpoints, and the complete ones that need not stay."""
        kept: set[str | None] = set(self.complete()[-self.keep :])
        if self.keep_until is not None:
            kept.add(self.newest(self.keep_until))
        prefix = len(self.folder) + 1
        for name in {name[prefix:].split("/")[0] for name in self.storage.names(self.folder)}:
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
        except RuntimeError as error:
            # torch fails to close its archive then, and raises that over the disk's own error, which says what to do.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _partitioning(engine: Engine) -> list[Any]:
    """What decides, beside the number of ranks, which part of the state each of them holds."""
    return [engine.shape.zero_stage, engine.shape.offload]


def read_commit(storage: Storage, folder: str) -> dict[str, Any]:
    """`commit.json` of a complete checkpoint."""
    if not storage.exists(f"{folder}/{COMMIT}"):
        raise ArtifactError(
            f"{storage.path(folder)} holds no complete checkpoint", "name a folder checkpoints/step-N with commit.json"
        )
    record: dict[str, Any] = json.loads(storage.read(f"{folder}/{COMMIT}"))
    return record
