"""Run a test script of vm-tests/ on local machines: the very file that NixOS's driver gets."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.machine.api import Machine
from tests.machine.outcome import AssertionTester, retry


class Log:
    """The driver's ``log`` object."""

    def info(self, msg: str) -> None:
        print(msg, file=sys.stderr, flush=True)

    log = warning = error = info

    @contextmanager
    def nested(self, msg: str, attributes: Mapping[str, str] | None = None) -> Iterator[None]:
        self.info(msg)
        yield


log = Log()


@contextmanager
def subtest(name: str) -> Iterator[None]:
    """Group the steps below under a name, and say it again if one of them fails."""
    log.info(f"subtest: {name}")
    try:
        yield
    except Exception as error:
        log.error(f'Test "{name}" failed with error: "{error}"')
        raise
    log.info(f"(finished: subtest: {name})")


def run_script(
    path: Path, machines: list[Machine], extra: Mapping[str, object] | None = None
) -> None:
    """Execute a driver test script with the driver's globals; its exceptions come out as they are.

    Each machine is a global under its own name, a single one also as ``machine``. EXTRA are more
    globals, for what the .nix file of a VM test interpolates into its script.
    """

    def start_all() -> None:
        for machine in machines:
            machine.start()

    def join_all() -> None:
        for machine in machines:
            machine.wait_for_shutdown()

    symbols: dict[str, Any] = {
        "start_all": start_all,
        "join_all": join_all,
        "subtest": subtest,
        "retry": retry,
        "machines": machines,
        "log": log,
        "t": AssertionTester(),
        "Machine": Machine,
        **{re.sub(r"^[^A-Za-z_]|[^A-Za-z0-9_]", "_", each.name): each for each in machines},
        **(extra or {}),
    }
    if len(machines) == 1:
        symbols["machine"] = machines[0]
    exec(compile(path.read_text(), str(path), "exec"), symbols)
