"""All objects below a root as a tar stream, and back: `make backup` saves so what Compose's S3 server holds.

    python docker/archive.py save s3://crawl2chat >artifacts.tar    # needs a container engine
    python docker/archive.py load s3://crawl2chat <artifacts.tar    # needs a container engine

A run may go on meanwhile: artifacts never change, and their manifests are written last.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
from typing import BinaryIO

from pipeline import errors
from pipeline.errors import InputError
from pipeline.storage import Storage


def save(storage: Storage, out: BinaryIO) -> int:
    """Write every object to a tar; returns how many. One that is removed meanwhile raises `StorageError`."""
    sizes = storage.sizes("")
    with tarfile.open(fileobj=out, mode="w|") as archive:
        for name in sorted(sizes):
            member = tarfile.TarInfo(name)
            with storage.reading(name) as source:
                member.size = source.size()  # it may have been written anew since it was listed
                archive.addfile(member, source)
    return len(sizes)


def load(storage: Storage, source: BinaryIO) -> int:
    """Write every member of a tar below the root, which replaces objects of its name; returns how many."""
    count = 0
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                raise InputError(f"{member.name} is no file", "load an archive that `save` wrote")
            with storage.writing(member.name) as out:
                shutil.copyfileobj(content, out)
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["save", "load"])
    parser.add_argument("root", help="s3://bucket, or a folder")
    options = parser.parse_args()
    storage = Storage(options.root)
    count = save(storage, sys.stdout.buffer) if options.what == "save" else load(storage, sys.stdin.buffer)
    print(f"{options.what}: {count:,} objects of {options.root}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
