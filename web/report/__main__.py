"""`python -m web.report`."""

from __future__ import annotations

import argparse

from pipeline import command, errors
from pipeline.storage import Storage
from web import report


def main() -> None:
    parser = argparse.ArgumentParser(description=report.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_root(parser)
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--force", action="store_true", help="make it again")
    options = parser.parse_args()
    published = report.publish(Storage(options.root), options.run, options.force)
    print(published.storage.path(published.file(report.FILE)), flush=True)


if __name__ == "__main__":
    errors.run(main)
