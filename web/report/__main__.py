"""`python -m web.report`."""

from __future__ import annotations

import argparse

from pipeline import errors
from pipeline.storage import Storage
from web import report


def main() -> None:
    parser = argparse.ArgumentParser(description=report.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--force", action="store_true", help="make it again")
    options = parser.parse_args()
    published = report.publish(Storage(options.root), options.run, options.force)
    print(published.storage.path(published.file(report.FILE)), flush=True)


if __name__ == "__main__":
    errors.run(main)
