"""Make recorded runs: ``python -m experiments NAME…``; without a name, list them with how long each takes."""

import argparse
import sys
from pathlib import Path

from ftdocs import records
from ftdocs.errors import InputError

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    """List, make or check records; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run or to resume")
    parser.add_argument(
        "--check",
        action="store_true",
        help="run one case again and compare it with the record; a stale one that holds is marked as confirmed",
    )
    options = parser.parse_args()
    try:
        for name in options.names:
            if options.check and records.state(name, RESULTS) == "stale":
                confirmed = records.confirm(name, RESULTS).confirmed or {}
                print(f"{name}: confirmed, {confirmed['case']}")
            elif options.check:
                print(f"{name}: as recorded, {records.check(name, RESULTS)}")
            else:
                record = records.make(name, RESULTS)
                print(
                    f"{name}: {len(record.rows)} cases in {record.seconds:.0f} s, kept in results/{name}.json"
                )
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for name in [] if options.names else records.names(RESULTS):
        state = records.state(name, RESULTS)
        took = f"{records.load(name, RESULTS).seconds:.0f} s" if state not in ("missing", "partial") else "?"
        print(f"{name:30} {state:8} {took}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
