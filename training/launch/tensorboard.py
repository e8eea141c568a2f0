"""Progress of a training stage that TensorBoard reads too: `tensorboard --logdir <root>/_work`.

Event files lie in the work folder of the stage, since they hold the time; the artifact has `metrics.jsonl`. A stage
that resumes from a checkpoint withdraws what its last attempt wrote of later steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorboardX import SummaryWriter

from pipeline.progress import Progress
from pipeline.storage import Storage


class TensorBoardProgress(Progress):
    """Progress events, and the same numbers as scalars. A root in an object store has the events alone."""

    def __init__(self, storage: Storage, folder: str, stage: str, unit: str) -> None:
        super().__init__(storage, folder, stage, unit)
        self._path = storage.local_path(folder).parent / "tensorboard" if storage.local else None
        self._writer: SummaryWriter | None = None

    def __call__(self, done: int, total: int, **numbers: Any) -> None:
        """See `Progress`; the numbers are scalars `<stage>/<name>` too."""
        super().__call__(done, total, **numbers)
        if writer := self._open(done):
            for name, value in numbers.items():
                if value is not None:
                    writer.add_scalar(f"{self._stage}/{name}", value, done)
            if done >= total:
                writer.close()

    def add_samples(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        """Write what the model sampled at a step, rows of `prompt` and `text`, as texts."""
        if writer := self._open(step):
            for number, row in enumerate(samples):
                writer.add_text(f"{self._stage}/sample {number}", f"**{row['prompt']}**{row['text']}", step)

    def _open(self, step: int) -> SummaryWriter | None:
        # Opened at the first step, since only then is it known which one it is: TensorBoard forgets what earlier files
        # hold from `purge_step` on. The suffix keeps two attempts that begin within a second apart.
        if self._path and not self._writer:
            self._writer = SummaryWriter(str(self._path), purge_step=step, filename_suffix=f".{step}", flush_secs=10)
        return self._writer
