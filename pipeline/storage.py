"""Files below a root, local or in an object store, through `pyarrow.fs`.

A `Storage` is a folder: names of files are relative to it, with `/`, and may not lead out of it. It holds the root only
and opens the file system at first use, so that it can be pickled to Spark's workers.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from pyarrow import fs

from pipeline.errors import StorageError

_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk, quota or file system answers


def holds_password(text: str) -> bool:
    """Whether a URI in it is of the form `scheme://user:password@…`, which logs, recipes and manifests would repeat."""
    return re.search(r"[a-z0-9+.-]://[^/@]*:[^/@]*@", text, re.IGNORECASE) is not None


class _Sink(io.FileIO):
    """A file whose errors bear its name: those of a block that writes to it are told apart by that."""

    def write(self, data: Any) -> int:
        with self._named():
            return super().write(data)

    def sync(self) -> None:
        with self._named():
            os.fsync(self.fileno())

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error


class Storage:
    """Read and write files below `root`: a local folder, or a URI that `pyarrow.fs` knows (`s3://bucket/prefix`)."""

    def __init__(self, root: str | Path) -> None:
        text = str(root).removeprefix("file://")
        if holds_password(text):
            raise StorageError("the root's URI holds a password", "give keys in the environment: AWS_ACCESS_KEY_ID, …")
        self.root = text.rstrip("/") if "://" in text else str(Path(text).expanduser().resolve())
        if self.root.endswith(":"):
            raise StorageError(f"cannot open {text}: it names no bucket", "give --root a folder or s3://bucket/prefix")
        self._open: tuple[fs.FileSystem, str] | None = None

    def __getstate__(self) -> str:
        return self.root

    def __setstate__(self, root: str) -> None:
        self.root, self._open = root, None

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    @property
    def local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return "://" not in self.root

    def path(self, name: str) -> str:
        """Absolute path or URI of `name`."""
        return f"{self.root}/{self._checked(name)}"

    def local_path(self, name: str) -> Path:
        """Path of `name`, for a library that maps or opens files itself; `StorageError` for a remote root."""
        if not self.local:
            raise StorageError(
                f"{self.path(name)} does not lie on this machine", "use a local --root for this stage, or copy it first"
            )
        return Path(self.path(name))

    def _checked(self, name: str) -> str:
        parts = name.split("/")
        if "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise StorageError(f"{name!r} is no path below {self.root}", "use names without '..' and empty parts")
        return name

    def _at(self, name: str) -> tuple[fs.FileSystem, str]:
        if self._open is None:
            try:
                if self.local:
                    self._open = fs.LocalFileSystem(), self.root
                else:
                    self._open = fs.FileSystem.from_uri(self.root)
            except (OSError, ValueError) as error:
                raise StorageError(f"cannot open {self.root}: {error}", "check the scheme and its settings") from error
        system, base = self._open
        return system, f"{base}/{self._checked(name)}"

    def exists(self, name: str) -> bool:
        """Whether `name` is a file."""
        return bool(self._info(name).type == fs.FileType.File)

    def size(self, name: str) -> int | None:
        """Bytes of the file `name`, or None where there is none."""
        info = self._info(name)
        return int(info.size) if info.type == fs.FileType.File else None

    def _info(self, name: str) -> fs.FileInfo:
        system, path = self._at(name)
        try:
            return cast(fs.FileInfo, system.get_file_info(path))
        except OSError as error:
            raise self._unreadable(name, error) from error

    def names(self, folder: str) -> list[str]:
        """Names, relative to the root, of all files below `folder`, sorted; empty where it does not exist."""
        self._checked(folder)
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file that `names` lists; `folder` may be empty for all of the root."""
        system, path = self._at(folder or "x")  # the root itself has no name: take one below it and cut that off
        path = path if folder else path.removesuffix("/x")
        start = len(path) - len(folder) if folder else len(path) + 1
        try:
            infos = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
        except OSError as error:
            raise self._unreadable(folder, error) from error
        return {info.path[start:]: int(info.size) for info in infos if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        """The whole file. Raises `StorageError` where it cannot be read."""
        system, path = self._at(name)
        try:
            with system.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise self._unreadable(name, error) from error

    @contextmanager
    def reading(self, name: str) -> Iterator[Any]:
        """The file opened for random reads, as pyarrow's `NativeFile`."""
        system, path = self._at(name)
        try:
            opened = system.open_input_file(path)
        except OSError as error:
            raise self._unreadable(name, error) from error
        with opened as stream:
            yield stream

    def blocks(self, name: str) -> Iterator[bytes]:
        """The file in blocks of at most 1 MiB. Raises `StorageError` where it cannot be read."""
        with self.reading(name) as stream:
            while True:
                try:
                    block = bytes(stream.read(_BLOCK))
                except OSError as error:
                    raise self._unreadable(name, error) from error
                if not block:
                    return
                yield block

    @contextmanager
    def writing(self, name: str, *, spooled: bool = False) -> Iterator[BinaryIO]:
        """A new file that appears under `name` whole, when the block ends without an error, or not at all.

        With `spooled`, and always for a remote root, it is an unnamed file below TMPDIR until then: a block that runs
        for long leaves nothing behind when it is killed.
        """
        if self.local and not spooled:
            with self._opened(name) as stream:
                yield stream
            return
        try:
            with tempfile.TemporaryFile() as spool:
                yield cast(BinaryIO, spool)
                spool.seek(0)
                with self._opened(name) as stream:
                    shutil.copyfileobj(spool, stream, _BLOCK)
        except OSError as error:
            if error.errno not in _FULL or error.filename:
                raise  # raised in the block, not by the spool
            raise _no_room_for(self.path(name), error) from error

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """As `writing`, without a spool; below a remote root the file appears even when the block fails."""
        system, path = self._at(name)
        try:
            if self.local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
                try:
                    sink = _Sink(temporary, "wb")
                    with io.BufferedWriter(sink) as stream:
                        yield cast(BinaryIO, stream)
                        stream.flush()
                        sink.sync()
                    os.replace(temporary, path)
                finally:
                    Path(temporary).unlink(missing_ok=True)
            else:  # the block only copies a spool
                with system.open_output_stream(path, compression=None) as remote:
                    yield cast(BinaryIO, remote)
        except OSError as error:
            if self.local and not (isinstance(error.filename, str) and error.filename.startswith(self.root)):
                raise  # raised in the block, about a file elsewhere, a connection or the like
            raise _not_writable(self.root, error) from error

    @contextmanager
    def filling(self, folder: str, staging: str) -> Iterator[Path]:
        """A folder of this machine for a library that writes files itself; they are then moved to `folder`, each whole.

        They are moved when the block ends without an error, else nothing changes. Below a local root the folder is
        `staging`, emptied before and removed after, and files are renamed; for a remote root it is below TMPDIR, and
        they are copied.
        """
        try:
            with self._staged(staging) as path:
                yield path
                for file in sorted(path.iterdir()):
                    if self.local:
                        self._move(file, f"{folder}/{file.name}")
                    else:
                        with self.writing(f"{folder}/{file.name}") as remote, file.open("rb") as stream:
                            shutil.copyfileobj(stream, remote, _BLOCK)
        except Exception as error:
            here = self.root if self.local else tempfile.gettempdir()
            of_system = _of_system(error, f"{here}/{staging}")
            if of_system is None or (isinstance(of_system.filename, str) and not of_system.filename.startswith(here)):
                raise  # not about a file below `here`
            if self.local:
                raise _not_writable(self.root, of_system) from error
            raise _no_room_for(self.path(folder), of_system) from error

    @contextmanager
    def _staged(self, name: str) -> Iterator[Path]:
        if not self.local:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)
            return
        self.remove_tree(name)
        path = self.local_path(name)
        try:
            path.mkdir(parents=True)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _move(self, file: Path, name: str) -> None:
        """Rename a file of a folder of `_staged`."""
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        file.chmod(file.parent.stat().st_mode & 0o666)  # as the umask has it: safetensors lets only its user read
        self.local_path(name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, self.local_path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write the whole file at once; an older one is replaced."""
        with self.writing(name) as stream:
            stream.write(data)

    def create(self, name: str, data: bytes) -> bool:
        """Write the file unless it exists. Returns False, and changes nothing, where it does.

        Atomic on a local folder. In an object store the check and the write are two requests, between which another
        process may write. Its file then replaces ours, or ours its: both made the same artifact, since the name bears
        its fingerprint, but the times and hosts of their manifests differ.
        """
        if not self.local:
            if self.exists(name):
                return False
            self.write(name, data)
            return True
        path, temporary = self.local_path(name), f"{name}.{uuid.uuid4().hex[:8]}.tmp"
        self.write(temporary, data)
        try:
            os.link(self.local_path(temporary), path)
        except FileExistsError:
            return False
        except OSError as error:
            raise _not_writable(self.root, error) from error
        finally:
            self.local_path(temporary).unlink(missing_ok=True)
        return True

    def remove(self, name: str) -> None:
        """Remove the file if it is there."""
        if self.exists(name):
            system, path = self._at(name)
            try:
                system.delete_file(path)
            except FileNotFoundError:  # another process was faster
                return
            except OSError as error:
                raise self._not_removable(name, error) from error

    def remove_tree(self, folder: str) -> None:
        """Remove the folder and all below it, if it is there."""
        if self._info(folder).type == fs.FileType.Directory:
            system, path = self._at(folder)
            try:
                system.delete_dir(path)
            except OSError as error:
                raise self._not_removable(folder, error) from error

    def sha256(self, name: str) -> str:
        """Sha256 of the file, in hex."""
        digest = hashlib.sha256()
        for block in self.blocks(name):
            digest.update(block)
        return digest.hexdigest()

    def check_writable(self) -> None:
        """Raise `StorageError` where the root cannot be written, before anything is spent."""
        name = f"_work/.probe-{uuid.uuid4().hex[:8]}"
        self.write(name, b"")
        self.remove(name)

    def _unreadable(self, name: str, error: OSError) -> StorageError:
        path = self.path(name) if name else self.root
        if isinstance(error, FileNotFoundError):
            return StorageError(f"{path} does not exist", "run the stage that writes it")
        return StorageError(f"{path} cannot be read: {error}", "correct its permissions, or copy it again")

    def _not_removable(self, name: str, error: OSError) -> StorageError:
        return StorageError(f"{self.path(name)} cannot be removed: {error}", "correct the permissions of its folder")


def _of_system(error: Exception, path: str) -> OSError | None:
    """The operating system's error behind that of a library; libraries in Rust only print its number."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), path) if number else None


def _no_room_for(path: str, error: OSError) -> StorageError:
    return StorageError(
        f"the temporary copy of {path} cannot be written: {error}",
        f"make room in {tempfile.gettempdir()}, or set TMPDIR to a folder of another disk",
    )


def _not_writable(root: str, error: OSError) -> StorageError:
    full = error.errno in _FULL
    remedy = "make room, or choose another --root" if full else "choose another --root or correct its permissions"
    return StorageError(f"the root {root} cannot be written: {error}", remedy)
