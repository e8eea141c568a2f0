"""Files are whole or absent, `create` has one winner, names stay below the root, and a bad root is a clear error."""

from __future__ import annotations

import errno
import pickle
import resource
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs
from safetensors.numpy import save_file

from pipeline.errors import StorageError
from pipeline.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


@pytest.fixture
def remote() -> Storage:
    """An object store in memory, as far as `Storage` can tell."""
    made = Storage("mock://bucket")
    system, base = fs.FileSystem.from_uri("mock://bucket")
    system.create_dir("bucket/a", recursive=True)
    made._open = system, base.rstrip("/") or "bucket"
    return made


def stopped_half_way(storage: Storage) -> None:
    with storage.writing("a/file") as stream:
        stream.write(b"half")
        raise ZeroDivisionError


def test_write_read_names_size_hash(storage: Storage) -> None:
    storage.write("b/two", b"22")
    storage.write("a/deep/one", b"1")
    assert storage.read("b/two") == b"22"
    assert storage.size("b/two") == 2
    assert storage.names("a") == ["a/deep/one"]
    assert storage.names("nothing") == []
    assert storage.exists("a/deep/one") and not storage.exists("a/deep")
    assert storage.size("a/deep") is None
    assert storage.sha256("a/deep/one") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    with storage.reading("b/two") as stream:
        stream.seek(1)
        assert stream.read() == b"2"


def test_create_has_one_winner(storage: Storage) -> None:
    many = 16
    barrier = threading.Barrier(many)

    def race(number: int) -> bool:
        barrier.wait()
        return storage.create("deep/file", str(number).encode() * 10_000)

    with ThreadPoolExecutor(many) as pool:
        won = list(pool.map(race, range(many)))
    assert won.count(True) == 1
    assert storage.read("deep/file") == str(won.index(True)).encode() * 10_000
    assert storage.names("deep") == ["deep/file"], "losers leave nothing behind"


def test_create_does_not_replace(storage: Storage) -> None:
    assert storage.create("file", b"first")
    assert not storage.create("file", b"second")
    assert storage.read("file") == b"first"


@pytest.mark.parametrize("before", [None, b"old"])
def test_writing_is_all_or_nothing(storage: Storage, before: bytes | None) -> None:
    if before is not None:
        storage.write("a/file", before)
    with pytest.raises(ZeroDivisionError):
        stopped_half_way(storage)
    assert storage.names("a") == ([] if before is None else ["a/file"])
    assert before is None or storage.read("a/file") == before


def test_remote_writing_is_all_or_nothing(remote: Storage) -> None:
    with pytest.raises(ZeroDivisionError):
        stopped_half_way(remote)
    assert not remote.exists("a/file")
    remote.write("a/file", b"whole" * 1_000_000)
    assert remote.size("a/file") == 5_000_000
    assert remote.create("a/new", b"1") and not remote.create("a/new", b"2")
    assert remote.read("a/new") == b"1"
    assert remote.names("a") == ["a/file", "a/new"]


def test_remote_has_no_local_path(remote: Storage) -> None:
    assert not remote.local
    with pytest.raises(StorageError, match="mock://bucket/a/file does not lie on this machine"):
        remote.local_path("a/file")


@pytest.mark.parametrize("name", ["../x", "a/../x", "/etc/passwd", "a//b", "", ".", "a/.", "a/", "a\0b"])
def test_names_cannot_leave_the_root(storage: Storage, name: str) -> None:
    for use in (storage.read, storage.exists, storage.path, storage.names, storage.remove_tree, storage.local_path):
        with pytest.raises(StorageError, match="is no path below"):
            use(name)
    with pytest.raises(StorageError, match="is no path below"):
        storage.write(name, b"")
    with pytest.raises(StorageError, match="is no path below"):
        storage.create(name, b"")


def test_a_remote_file_holds_what_was_written_whatever_its_name(remote: Storage) -> None:
    """pyarrow compresses by the ending of a name, unless told otherwise."""
    for name in ("a/crawl.warc.gz", "a/log.zst", "a/plain"):
        remote.write(name, b"bytes")
        assert remote.read(name) == b"bytes" and remote.size(name) == 5


@pytest.mark.parametrize("root", ["gopher://host/x", "s3://"])
def test_scheme_that_is_not_known(root: str) -> None:
    with pytest.raises(StorageError, match="cannot open") as caught:
        Storage(root).read("x")
    assert caught.value.remedy


def test_a_root_with_a_password_is_refused_and_not_told() -> None:
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID") as caught:
        Storage("s3://key:planted@bucket/prefix")
    assert "planted" not in str(caught.value)
    assert Storage("abfs://container@account.example.org/x").root  # a place, and no password


def test_file_uri_is_a_local_root(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}")
    assert storage.local and storage.root == str(tmp_path)


def test_what_is_not_there(storage: Storage) -> None:
    for read in (storage.read, storage.sha256):
        with pytest.raises(StorageError, match="a/file does not exist"):
            read("a/file")
    storage.remove("a/file")
    storage.remove_tree("a")


def test_root_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = Storage(tmp_path / "file" / "root")
    for use in (storage.check_writable, lambda: storage.write("a", b""), lambda: storage.create("a/b", b"")):
        with pytest.raises(StorageError, match=f"the root {storage.root} cannot be written") as caught:
            use()
        assert "--root" in caught.value.remedy
    assert not storage.exists("a") and storage.names("a") == []


def test_name_below_a_file_is_not_a_lost_race(storage: Storage) -> None:
    storage.write("a", b"")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.create("a/b", b"")


def test_root_that_cannot_be_written() -> None:
    with pytest.raises(StorageError, match="the root /proc/none cannot be written"):
        Storage("/proc/none").check_writable()


def test_no_space(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        storage.write("a/file", b"x")
    assert "make room" in caught.value.remedy
    assert storage.names("a") == []


def test_a_blocks_own_trouble_is_not_the_roots(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError), storage.writing("a"):
        Path("/nowhere/else").read_bytes()
    for trouble in (ConnectionResetError("reset by peer"), OSError(errno.EIO, "of another device")):
        for spooled in (False, True):
            with pytest.raises(OSError, match=r"peer|device") as caught, storage.writing("a", spooled=spooled):
                raise trouble
            assert caught.value is trouble
    assert storage.names("a") == []


def test_what_a_block_cannot_write_is_the_roots_trouble(storage: Storage) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StorageError, match="File too large") as raised:
            storage.write("a", b"2" * 99_999)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "make room" in raised.value.remedy
    assert storage.names("a") == []


class Lost:
    """A file system whose connection is lost, and a file of it."""

    def __enter__(self) -> Lost:
        return self

    def __exit__(self, *_: object) -> None: ...

    def lost(self, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, "connection lost")

    def open_input_file(self, _: str) -> Lost:
        return self

    get_file_info = read = lost


def test_a_file_system_that_fails_is_a_clear_error_and_names_the_file(remote: Storage) -> None:
    remote._open = Lost(), "bucket"  # type: ignore[assignment]
    for use in (remote.exists, remote.size, remote.names, remote.remove, remote.remove_tree, remote.sha256):
        with pytest.raises(StorageError, match=r"mock://bucket/a cannot be read: .*connection lost"):
            use("a")
    with pytest.raises(StorageError, match="mock://bucket cannot be read"):
        remote.sizes("")


def test_what_cannot_be_removed_is_a_clear_error(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write("a/file", b"")
    system, _ = storage._at("a/file")

    class Kept:
        get_file_info = system.get_file_info
        delete_file = delete_dir = Lost().lost

    monkeypatch.setattr(storage, "_open", (Kept(), storage.root))
    for use, name in ((storage.remove, "a/file"), (storage.remove_tree, "a")):
        with pytest.raises(StorageError, match=rf"{name} cannot be removed: .*connection lost"):
            use(name)


@pytest.mark.parametrize("where", ["storage", "remote"])
def test_what_is_spooled_appears_whole_or_not_at_all(where: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(where)
    with storage.writing("a/file", spooled=True) as stream:
        stream.write(b"1")
        assert storage.sizes("") == {}
    assert storage.read("a/file") == b"1"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StorageError, match="File too large") as raised:
            spool(storage, b"2" * 9999)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{storage.root}/a/file" in str(raised.value) and f"room in {tempfile.gettempdir()}" in str(raised.value)
    assert storage.sizes("") == {"a/file": 1} and storage.read("a/file") == b"1"


def spool(storage: Storage, data: bytes) -> None:
    with storage.writing("a/file", spooled=True) as stream:
        stream.write(data)


def fill(storage: Storage, numbers: int = 9) -> Path:
    """A library's files, on their way to `a`; the folder they are made in."""
    with storage.filling("a", "_work/made.tmp") as path:
        (path / "b").write_bytes(b"2")
        save_file({"x": np.zeros(numbers, np.float32)}, path / "c")
    return path


def test_a_library_fills_a_folder_below_the_root(storage: Storage) -> None:
    storage.write("_work/made.tmp/of-a-killed-one", b"")
    storage.write("a/b", b"1")
    made = fill(storage)
    assert made == storage.local_path("_work/made.tmp") and not made.exists()
    assert storage.sizes("").keys() == {"a/b", "a/c"}
    assert storage.read("a/b") == b"2"
    modes = {storage.local_path(f"a/{name}").stat().st_mode for name in "bc"}
    assert len(modes) == 1  # safetensors' own would be for its user alone


def test_a_library_fills_a_remote_folder(remote: Storage) -> None:
    made = fill(remote)
    assert remote.sizes("a").keys() == {"a/b", "a/c"} and not made.exists()


@pytest.mark.parametrize("where", ["storage", "remote"])
def test_no_space_for_a_library_is_a_clear_error_and_nothing_appears(
    where: str, request: pytest.FixtureRequest
) -> None:
    storage: Storage = request.getfixturevalue(where)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StorageError, match=r"cannot be written: .*File too large") as raised:
            fill(storage, 9999)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = str(raised.value)
    if where == "storage":
        assert f"{storage.root}/_work/made.tmp" in told
    else:
        assert f"{storage.root}/a" in told and f"room in {tempfile.gettempdir()}" in told
    assert not [name for name in storage.sizes("") if name.startswith(("a/", "_work"))]


def stopped_while_filling(storage: Storage) -> None:
    with storage.filling("a", "_work/made.tmp") as path:
        (path / "b").write_bytes(b"half")
        raise ZeroDivisionError


def test_trouble_of_who_fills_is_its_own(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage.filling("a", "_work/made.tmp"):
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(ZeroDivisionError):
        stopped_while_filling(storage)
    assert not storage.sizes("")


def test_check_writable_leaves_nothing(storage: Storage) -> None:
    storage.check_writable()
    assert storage.names("_work") == []


def test_pickled_it_is_the_same_folder(storage: Storage) -> None:
    storage.write("a", b"1")
    again = pickle.loads(pickle.dumps(storage))
    assert again.read("a") == b"1" and repr(again) == repr(storage)
