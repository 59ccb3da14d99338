"""The NixOS test driver's Machine, by its own names, over any way to run a command in a machine.

Written from the driver's documentation and behaviour (nixpkgs nixos/lib/test-driver), so that a
script of vm-tests/ runs here unchanged. Both spellings of its durations are taken: ``timeout`` and
``timeout_seconds``, ``secs`` and ``duration``.
"""

import io
import re
import shlex
import sys
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine.outcome import (
    DEFAULT_TIMEOUT,
    Completed,
    MachineError,
    RequestedAssertionError,
    retry,
)


class Machine(ABC):
    """One machine under test. ``start()`` boots it; the first command waits until it is up."""

    # Seconds between two looks at what is waited for. The driver takes 1; here it is cheap.
    interval = 0.1

    def __init__(self, name: str, out_dir: Path) -> None:
        self.name = name
        self.out_dir = out_dir
        self._depth = 0
        self._console_seen = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    # What a back end has to bring ----------------------------------------------------------------

    @abstractmethod
    def start(self, allow_reboot: bool = True) -> None:
        """Boot, unless it is up; does not wait for the boot to finish."""

    @abstractmethod
    def is_up(self) -> bool:
        """Say whether the machine runs and takes commands."""

    @abstractmethod
    def connect(self) -> None:
        """Start the machine if it is off, and wait until it takes commands."""

    @abstractmethod
    def run(self, argv: list[str], stdin: bytes = b"", *, wait: bool = True) -> Completed:
        """Run a program in the connected machine, wait for its end and its closed output."""

    @abstractmethod
    def wait_for_shutdown(self) -> None:
        """Wait until the machine has powered off."""

    @abstractmethod
    def crash(self) -> None:
        """Cut the power."""

    @abstractmethod
    def console(self) -> str:
        """Return everything that has come out of the console since the first boot."""

    # Logging --------------------------------------------------------------------------------------

    def log(self, msg: str) -> None:
        """Say something in the test's output."""
        print(f"{'  ' * self._depth}{self.name}: {msg}", file=sys.stderr, flush=True)

    @contextmanager
    def nested(self, msg: str, attrs: dict[str, str] | None = None) -> Iterator[None]:
        """Log a step with what it does below it, and how long it took."""
        self.log(msg)
        self._depth += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._depth -= 1
            self.log(f"(finished: {msg}, in {time.monotonic() - start:.2f} seconds)")

    # Commands -------------------------------------------------------------------------------------

    def execute(
        self,
        command: str,
        check_return: bool = True,
        check_output: bool = True,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> tuple[int, str]:
        """Run a shell command under ``set -euo pipefail``; return its status and its stdout.

        Standard error goes to the test's output. After TIMEOUT seconds it is killed: status 124.
        """
        self.connect()
        limit = [] if timeout is None else ["timeout", str(timeout)]
        argv = [*limit, "bash", "-c", f"set -euo pipefail; {command}"]
        done = self.run(argv, wait=check_output)
        if not check_output:
            return -2, ""
        for line in done.stderr.decode(errors="replace").splitlines():
            self.log(f"  | {line}")
        output = done.stdout.decode(errors="replace")
        return (done.status if check_return else -1), output

    def succeed(self, *commands: str, timeout: float | None = None) -> str:
        """Run commands that must succeed and return their output, concatenated."""
        output = ""
        for command in commands:
            with self.nested(f"must succeed: {command}"):
                status, out = self.execute(command, timeout=timeout)
                if status != 0:
                    self.log(f"output: {out}")
                    raise RequestedAssertionError(
                        f"command `{command}` failed (exit code {status})"
                    )
                output += out
        return output

    def fail(self, *commands: str, timeout: float | None = None) -> str:
        """Run commands that must fail and return their output, concatenated."""
        output = ""
        for command in commands:
            with self.nested(f"must fail: {command}"):
                status, out = self.execute(command, timeout=timeout)
                if status == 0:
                    raise RequestedAssertionError(f"command `{command}` unexpectedly succeeded")
                output += out
        return output

    def wait_until_succeeds(
        self,
        command: str,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        timeout_seconds: float | None = None,
    ) -> str:
        """Repeat a command until it succeeds, and return that output."""
        return self._wait_for_status(command, True, timeout, timeout_seconds)

    def wait_until_fails(
        self,
        command: str,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        timeout_seconds: float | None = None,
    ) -> str:
        """Repeat a command until it fails, and return that output."""
        return self._wait_for_status(command, False, timeout, timeout_seconds)

    def _wait_for_status(
        self, command: str, success: bool, timeout: float, timeout_seconds: float | None
    ) -> str:
        output = ""

        def check(_last: bool) -> bool:
            nonlocal output
            status, output = self.execute(command, timeout=timeout)
            return (status == 0) is success

        self._wait(
            f"{'success' if success else 'failure'}: {command}", check, timeout, timeout_seconds
        )
        return output

    def _wait(
        self,
        what: str,
        check: Callable[[bool], bool],
        timeout: float,
        timeout_seconds: float | None = None,
    ) -> None:
        limit = timeout if timeout_seconds is None else timeout_seconds
        with self.nested(f"waiting for {what}"):
            retry(check, limit, interval=self.interval)

    def sleep(self, secs: float = 0, *, duration: float | None = None) -> None:
        """Let time pass in the machine."""
        self.succeed(f"sleep {secs if duration is None else duration}")

    # Units ----------------------------------------------------------------------------------------

    def systemctl(self, q: str, user: str | None = None) -> tuple[int, str]:
        """Run systemctl with the arguments Q, as the user's manager if USER is given."""
        if user is None:
            return self.execute(f"systemctl {q}")
        inner = f"XDG_RUNTIME_DIR=/run/user/`id -u` systemctl --user {q}"
        return self.execute(f"su -l {user} --shell /bin/sh -c {shlex.quote(inner)}")

    def start_job(self, jobname: str, user: str | None = None) -> tuple[int, str]:
        return self.systemctl(f"start {jobname}", user)

    def stop_job(self, jobname: str, user: str | None = None) -> tuple[int, str]:
        return self.systemctl(f"stop {jobname}", user)

    def get_unit_info(self, unit: str, user: str | None = None) -> dict[str, str]:
        """Return all properties of a unit, as ``systemctl show`` has them."""
        status, lines = self.systemctl(f'--no-pager show "{unit}"', user)
        if status != 0:
            raise RequestedAssertionError(
                f'retrieving systemctl info for unit "{unit}" failed with exit code {status}'
            )
        pairs = (line.partition("=") for line in lines.splitlines())
        return {key: value for key, equals, value in pairs if key and equals}

    def get_unit_property(self, unit: str, property: str, user: str | None = None) -> str:  # noqa: A002 - the driver's own name, and passed by keyword
        """Return one property of a unit."""
        status, line = self.systemctl(f'--no-pager show "{unit}" --property="{property}"', user)
        key, equals, value = line.rstrip("\n").partition("=")
        if status != 0 or key != property or not equals:
            raise RequestedAssertionError(
                f'retrieving systemctl property "{property}" for unit "{unit}" failed '
                f"with exit code {status}: {line}"
            )
        return value

    def require_unit_state(self, unit: str, require_state: str = "active") -> None:
        """Assert the unit's ActiveState."""
        with self.nested(f"checking if unit '{unit}' has reached state '{require_state}'"):
            state = self.get_unit_property(unit, "ActiveState")
            if state != require_state:
                raise RequestedAssertionError(
                    f"Expected unit '{unit}' to be in state '{require_state}' "
                    f"but it is in state '{state}'"
                )

    def wait_for_unit(
        self,
        unit: str,
        user: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        """Wait until the unit is active; fail if it failed, or is inactive and has no job."""

        def check(_last: bool) -> bool:
            state = self.get_unit_property(unit, "ActiveState", user)
            if state == "failed":
                raise RequestedAssertionError(f'unit "{unit}" reached state "{state}"')
            if state == "inactive":
                _, jobs = self.systemctl("list-jobs --full 2>&1", user)
                if "No jobs" in jobs and self.get_unit_property(unit, "ActiveState", user) == state:
                    raise RequestedAssertionError(
                        f'unit "{unit}" is inactive and there are no pending jobs'
                    )
            return state == "active"

        self._wait(f"unit {unit}", check, timeout, timeout_seconds)

    # Files, ports, console ------------------------------------------------------------------------

    def wait_for_file(
        self,
        filename: str,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        self._wait_for_command(
            f"test -e {filename}", 0, f"file '{filename}'", timeout, timeout_seconds
        )

    def wait_for_open_port(
        self,
        port: int,
        addr: str = "localhost",
        timeout: float = DEFAULT_TIMEOUT,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        what = f"TCP port {port} on {addr}"
        self._wait_for_command(f"nc -z {addr} {port}", 0, what, timeout, timeout_seconds)

    def wait_for_closed_port(
        self,
        port: int,
        addr: str = "localhost",
        timeout: float = DEFAULT_TIMEOUT,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        what = f"TCP port {port} on {addr} to be closed"
        self._wait_for_command(f"nc -z {addr} {port}", 1, what, timeout, timeout_seconds)

    def wait_for_open_unix_socket(
        self,
        addr: str,
        is_datagram: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        flags = "-uU" if is_datagram else "-U"
        self._wait_for_command(
            f"nc -z {flags} {addr}", 0, f"UNIX-domain socket {addr}", timeout, timeout_seconds
        )

    def _wait_for_command(
        self, command: str, status: int, what: str, timeout: float, timeout_seconds: float | None
    ) -> None:
        self._wait(what, lambda _last: self.execute(command)[0] == status, timeout, timeout_seconds)

    def wait_for_console_text(
        self,
        regex: str,
        timeout: float | None = DEFAULT_TIMEOUT,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        """Wait for a line of the console, beginning after the last one that was waited for."""
        limit = timeout if timeout_seconds is None else timeout_seconds
        pattern = re.compile(regex)

        def check(_last: bool) -> bool:
            match = pattern.search(self.console(), self._console_seen)
            if match:
                self._console_seen = match.end()
            return match is not None

        self._wait(f"{regex!r} on the console", check, DEFAULT_TIMEOUT if limit is None else limit)

    def copy_from_host(self, source: str, target: str) -> None:
        """Copy a file or directory of this host to the path TARGET in the machine."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(source, arcname=Path(target).name)
        self._must_run(["mkdir", "-p", str(Path(target).parent)])
        self._must_run(
            ["tar", "-x", "--no-same-owner", "-C", str(Path(target).parent)], archive.getvalue()
        )

    def copy_from_machine(self, source: str, target_dir: str = "") -> None:
        """Copy a file or directory of the machine below ``out_dir``/TARGET_DIR."""
        path = Path(source)
        done = self._must_run(["tar", "-c", "-C", str(path.parent), path.name])
        target = self.out_dir / target_dir
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            tar.extractall(target, filter="data")

    def _must_run(self, argv: list[str], stdin: bytes = b"") -> Completed:
        self.connect()
        done = self.run(argv, stdin)
        if done.status != 0:
            raise MachineError(f"{shlex.join(argv)}: {done.stderr.decode(errors='replace')}")
        return done

    # Power ----------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Power off in good order and wait for the end."""
        if self.is_up():
            self.execute("systemctl poweroff --no-block", check_output=False)
            self.wait_for_shutdown()

    def reboot(self) -> None:
        """Reboot in good order; the next command waits for the new boot."""
        self.shutdown()
        self.start()

    def block(self) -> None:
        """Unplug the network cable."""
        raise MachineError(f"{self.name}: this back end has no network cable to unplug")

    def unblock(self) -> None:
        """Plug the network cable in again."""
        raise MachineError(f"{self.name}: this back end has no network cable to plug in")
