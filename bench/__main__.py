"""``python -m bench [SUITE …]``: run suites, print their tables, write build/bench/SUITE.json."""

import argparse
import importlib
import signal
import sys

from tests.machine.support import why_no_container

SUITES = ("restart", "evidence", "storm", "idle", "rollback", "ledger", "fleet")
# These measure no machine.
_ANYWHERE = frozenset({"fleet"})


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    chosen = parser.parse_args().suites or SUITES
    for name in chosen:
        if name not in SUITES:
            parser.error(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    needs_machine = not _ANYWHERE.issuperset(chosen)
    if needs_machine and (why := why_no_container()) is not None:
        print(f"bench: no machine to measure on: {why}", file=sys.stderr)
        return 1
    # By an exception, so that the machine is released.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in chosen:
        report = importlib.import_module(f"bench.{name}").run()
        path = report.write()
        print(f"\n{report.text()}\n  written to {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
