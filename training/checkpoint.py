"""What survives a kill, and what others load.

Checkpoints lie in `<work>/checkpoints/step-N/`: `model.pt`, `rank-R.pt` of every rank, and `commit.json`, written last.
Without a commit file a checkpoint does not exist, and is removed. Going on at the same world size is bit-identical;
another world size reads the same files, since optimizer state is kept in an order that does not depend on it.

The export is a folder in the layout of `transformers` (safetensors, tokenizer, chat template, generation settings).
"""

from __future__ import annotations

import io
import json
import pickle
import signal
import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from pipeline.artifact import Building, File, describe
from pipeline.errors import ArtifactError, Interrupted
from pipeline.storage import Storage
from tokenizer.chat import END_OF_TEXT, IM_END, PAD
from training import launch
from training.engine import Engine
from training.launch import World

KEEP = 2  # one to go on from, and one should its disk have lied
COMMIT = "commit.json"


class Writer(Protocol):
    """What an export needs of a tokenizer (`tokenizer.bpe.Tokenizer` is one)."""

    def special(self, token: str) -> int:
        """Id of a special token."""

    def write_hf(self, folder: Path, window: int) -> None:
        """Write the files that `AutoTokenizer` loads."""


class Checkpoints:
    """The checkpoints of one fingerprint. All ranks call `save` and `load` together."""

    def __init__(self, storage: Storage, work: str, world: World) -> None:
        self.storage, self.folder, self.world = storage, f"{work}/checkpoints", world

    def complete(self) -> list[str]:
        """Folders of the complete ones, oldest first."""
        ends = f"/{COMMIT}"
        return [name.removesuffix(ends) for name in self.storage.names(self.folder) if name.endswith(ends)]

    def save(self, engine: Engine, position: dict[str, Any]) -> None:
        """Save after step `engine.done`. `position`: plain data of the stage, returned by `load`."""
        folder = f"{self.folder}/step-{engine.done:08d}"
        if self.world.first and self.storage.exists(f"{folder}/{COMMIT}"):
            self.storage.remove(f"{folder}/{COMMIT}")  # saved again, by another number of ranks perhaps
        launch.wait(self.world)
        if self.world.first:
            self._write(f"{folder}/model.pt", engine.model.state_dict())
        state = engine.state() | {"torch": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        self._write(f"{folder}/rank-{self.world.rank:05d}.pt", state)
        launch.wait(self.world)
        if self.world.first:
            record = {"step": engine.done, "ranks": self.world.size, "position": position}
            self.storage.write(f"{folder}/{COMMIT}", json.dumps(record).encode())
            self._clean(KEEP)
        launch.wait(self.world)

    def load(self, engine: Engine) -> dict[str, Any] | None:
        """Bring `engine` to the newest complete checkpoint and return its `position`; None where there is none."""
        if self.world.first:
            self._clean(KEEP)
        launch.wait(self.world)
        found = launch.tell(self.world, self.complete())
        if not found:
            return None
        folder = found[-1]
        record = json.loads(self.storage.read(f"{folder}/{COMMIT}"))
        ranks = [self._read(f"{folder}/rank-{rank:05d}.pt") for rank in range(record["ranks"])]
        engine.model.load_state_dict(self._read(f"{folder}/model.pt"))
        engine.load_state(ranks)
        own = ranks[self.world.rank % len(ranks)]
        torch.set_rng_state(own["torch"])
        if "cuda" in own and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"])
        if self.world.first:
            print(f"goes on from step {record['step']} ({folder})", flush=True)
        position: dict[str, Any] = record["position"]
        return position

    def _clean(self, keep: int) -> None:
        """Remove all but the newest `keep` complete checkpoints, and what was never completed."""
        kept = set(self.complete()[-keep:])
        for folder in {name.rsplit("/", 1)[0] for name in self.storage.names(self.folder)} - kept:
            self.storage.remove(f"{folder}/{COMMIT}")  # first: half a checkpoint must not look like one
            self.storage.remove_tree(folder)

    def _write(self, name: str, data: dict[str, Any]) -> None:
        with self.storage.writing(name) as stream:
            torch.save(data, stream)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            data: dict[str, Any] = torch.load(
                io.BytesIO(self.storage.read(name)), map_location="cpu", weights_only=True
            )
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            path = self.storage.path(name)
            raise ArtifactError(
                f"{path} cannot be read: {error}", "remove its folder to go on from an older one"
            ) from error
        return data


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


def export(model: nn.Module, tokenizer: Writer, folder: Path) -> None:
    """Write model, tokenizer and generation settings to `folder`, for `AutoModelForCausalLM` and whoever reads it.

    Generation ends at `<|im_end|>` (a turn) and `<|endoftext|>` (a document); padding is another token (marin#4760).
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = [tokenizer.special(IM_END), tokenizer.special(END_OF_TEXT)]
    pad = tokenizer.special(PAD)
    model.config.pad_token_id = pad  # type: ignore[union-attr]
    settings: Any = model.generation_config
    settings.update(eos_token_id=ids, bos_token_id=tokenizer.special(END_OF_TEXT), pad_token_id=pad)
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.write_hf(folder, model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]


def write_export(building: Building, model: nn.Module, tokenizer: Writer) -> list[File]:
    """Export into the artifact in the making; the manifest entries of its files."""
    files = []
    with tempfile.TemporaryDirectory() as name:
        export(model, tokenizer, Path(name))
        for path in sorted(Path(name).iterdir()):
            building.storage.write(building.file(path.name), path.read_bytes())
            files.append(describe(building.storage, building.pointer.folder, path.name, rows=1))
    return files
