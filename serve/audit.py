"""`python -m serve.audit`: verifies and exports the record of requests (`serve/record.py`)."""

import argparse
import csv
import sys
from pathlib import Path
from typing import TextIO

from mura_ray import cli
from serve.record import AUDIT, FIRST, chained_hash, location, read_rows

EPILOG = """example:
  python -m serve.audit verify                   whether any row was changed or taken out; prints the newest hash
  python -m serve.audit verify --head HASH       and whether the row with this hash, noted earlier, is still there
  python -m serve.audit export --csv audit.csv

Without --url it is the record of MURA_AUDIT, else ~/.local/state/mura_ray/audit.sqlite3. Both commands may run while
the server does. Rows at the end can be cut off unseen unless the newest hash is noted elsewhere: note it at times."""


def main(argv: list[str] | None = None) -> int:
    """Parses, reads, reports."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.audit",
        description="Verifies and exports the server's record of requests.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    verifying = commands.add_parser("verify", help="check every row's hash against its content and the row before")
    verifying.add_argument("--head", metavar="HASH", help="a newest hash that was noted earlier")
    exporting = commands.add_parser("export", help="write all rows as a table")
    exporting.add_argument("--csv", required=True, metavar="PATH", help="file to write, - for standard output")
    for command in (verifying, exporting):
        command.add_argument("--url", metavar="URL", help="the record (default: MURA_AUDIT)")
    return cli.run(lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> None:
    url = arguments.url or location()
    if arguments.command == "verify":
        num_rows, head = verify(url, arguments.head)
        print(f"{num_rows:,} rows, none changed or missing; the newest hash is {head}")
    elif arguments.csv == "-":
        _export(url, sys.stdout)
    else:
        with Path(arguments.csv).open("w", newline="") as file:
            _export(url, file)


def verify(url: str, noted: str | None = None) -> tuple[int, str]:
    """Checks the chain of rows.

    Args:
        url: the record's.
        noted: a hash that was the newest once.

    Returns:
        The number of rows and the newest hash.

    Raises:
        ValueError: a row was changed, added or taken out, or none has the noted hash; or there is no record.
    """
    previous, num_rows, is_found = FIRST, 0, noted is None
    for expected, row in enumerate(read_rows(url), start=1):
        if row["seq"] != expected:
            raise ValueError(f"row {expected} is missing from the audit record: the next one is {row['seq']}")
        if row["hash"] != chained_hash(previous, row):
            raise ValueError(f"row {expected} of the audit record, or its hash, was changed: {row['time']}")
        previous, num_rows = row["hash"], expected
        is_found = is_found or previous == noted
    if not is_found:
        raise ValueError(f"no row of the audit record has the hash {noted}: rows were cut off its end or replaced")
    return num_rows, previous


def _export(url: str, file: TextIO) -> None:
    writer = csv.DictWriter(file, AUDIT.columns.keys())
    writer.writeheader()
    writer.writerows(read_rows(url))


if __name__ == "__main__":
    raise SystemExit(main())
