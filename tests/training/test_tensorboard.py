"""TensorBoard's files hold the numbers of the progress events, and the samples are there while the model learns."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from pipeline import progress
from pipeline.errors import ArtifactError
from pipeline.storage import Storage
from tests.training import support
from tests.training.pretraining import publish, small
from training import pretrain, samples
from training.launch.tensorboard import TensorBoardProgress


def events(folder: Path) -> list[Event]:
    """The events of all files, in order: length (8 bytes), its CRC (4), data, its CRC (4), again and again."""
    read = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            read.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return read


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Value by step of each tag; of two events of a step the later one counts, as in TensorBoard."""
    values: dict[str, dict[int, float]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                values.setdefault(value.tag, {})[event.step] = value.simple_value
    return values


def test_scalars_are_those_of_the_events_and_a_resumed_stage_withdraws_later_ones(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    first = TensorBoardProgress(storage, "_work/x/progress", "pretrain", "step")
    for step in (1, 2, 3):
        first(step, 9, loss=float(step), bits_per_byte=None)
    first.flush()
    assert first._writer
    first._writer.close()
    resumed = TensorBoardProgress(storage, "_work/x/progress", "pretrain", "step")
    for step in range(3, 10):
        resumed(step, 9, loss=10.0 * step)
    folder = tmp_path / "_work/x/tensorboard"
    assert scalars(folder)["pretrain/loss"] == {1: 1.0, 2: 2.0} | {step: 10.0 * step for step in range(3, 10)}
    starts = [event.step for event in events(folder) if event.HasField("session_log")]
    assert starts == [1, 3]  # TensorBoard forgets what the first attempt wrote from step 3 on
    assert len(list(progress.events(storage, "_work/x/progress"))) == 10


def test_pretraining_writes_scalars_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(tmp_path, steps=6, evaluate_every=2, checkpoint_every=6, prompts=["the cat", "a"])
    publish(tmp_path, path)
    with pytest.raises(ArtifactError, match="pretrain has not run"):
        samples.read(Storage(tmp_path), "demo")
    support.run(pretrain, tmp_path, path, monkeypatch)
    published = support.artifact_of(tmp_path, "pretrain")
    work = tmp_path / "_work" / "pretrain" / published.content.fingerprint
    shown, rows = scalars(work / "tensorboard"), support.rows(published)
    assert shown["pretrain/loss"] == pytest.approx({row["step"]: row["loss"] for row in rows}, rel=1e-6)
    assert set(shown["pretrain/validation_loss"]) == {2, 4, 6}
    steps = list(progress.events(Storage(tmp_path), f"_work/pretrain/{published.content.fingerprint}/progress"))
    assert [event.done for event in steps] == list(range(1, 7))
    for name in ("tokens_per_second", "tflops", "peak_bytes", "step_seconds", "data_wait", "lr", "grad_norm"):
        expected = {event.done: event.numbers[name] for event in steps}
        assert shown[f"pretrain/{name}"] == pytest.approx(expected, rel=1e-6)
    texts = [v.tag for event in events(work / "tensorboard") for v in event.summary.value if "sample" in v.tag]
    assert len(texts) == 6
    assert (work / samples.SAMPLES).read_bytes() == published.storage.read(published.file(samples.SAMPLES))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["samples", "--root", str(tmp_path), "--prompt", "the cat"])
    samples.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["run demo", "'the cat'"] and [line.split()[0] for line in lines[2:]] == ["2", "4", "6"]
