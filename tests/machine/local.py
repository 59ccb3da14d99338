"""What the local machine has beyond the driver's API: systems built and deployed in it."""

import contextlib
import json
import time
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Literal

from tests.machine.api import Machine
from tests.machine.outcome import MachineError, RequestedAssertionError

How = Literal["switch", "boot", "test"]
# What a test declares: the attributes that toplevel.nix takes, or a Nix expression of these.
SystemSpec = Mapping[str, Any] | str

PROFILE = "/nix/var/nix/profiles/system"
_JOURNAL_LINES = 300
_CONSOLE_CHARS = 8000


class LocalMachine(Machine):
    """A machine with a Nix store of its own that builds and runs the systems it is told."""

    def build(self, system: SystemSpec) -> str:
        """Build a system inside the machine and return its toplevel's store path."""
        return self._rebuild("build", system)[1]

    def deploy(
        self, system: SystemSpec, how: How = "switch", status: Collection[int] = (0,)
    ) -> str:
        """Do what ``nixos-rebuild HOW`` does, and return the toplevel.

        STATUS lists the exit codes of switch-to-configuration that the test accepts: 4 too where
        units are meant to fail.
        """
        start = time.monotonic()
        code, toplevel = self._rebuild(how, system)
        if code not in status:
            raise RequestedAssertionError(f"{how} to {toplevel or 'a system'}: exit code {code}")
        self.log(f"deployed {toplevel} ({how}) in {time.monotonic() - start:.2f} seconds")
        return toplevel

    def switch(self, toplevel: str, how: str = "switch") -> int:
        """Run a built system's switch-to-configuration and return its exit code."""
        return self.execute(f"{toplevel}/bin/switch-to-configuration {how} >&2")[0]

    def set_profile(self, toplevel: str) -> None:
        """Make a built system the newest generation of the system profile."""
        self.succeed(f"nix-env -p {PROFILE} --set {toplevel}")

    def current_system(self) -> str:
        """Return the toplevel that is active now."""
        return self.succeed("readlink -f /run/current-system").strip()

    def write_file(self, path: str, text: str) -> None:
        """Write a text file in the machine, making its directories."""
        self._must_run(
            ["sh", "-c", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "sh", path], text.encode()
        )

    def read(self, pattern: str) -> bytes:
        """Return all that is in the files whose absolute paths match, in order; none is nothing."""
        return self._must_run(["sh", "-c", f"cat {pattern} 2>/dev/null || true"]).stdout

    def _rebuild(self, action: str, system: SystemSpec) -> tuple[int, str]:
        is_text = isinstance(system, str)
        path = f"/run/local-rebuild/system.{'nix' if is_text else 'json'}"
        self.write_file(path, str(system) if is_text else json.dumps(system))
        code, out = self.execute(f"local-rebuild {action} {path}")
        toplevel = out.strip()
        if not toplevel:
            raise RequestedAssertionError(f"the system does not build (exit code {code})")
        return code, toplevel

    def journal(self, lines: int = _JOURNAL_LINES, only: str = "") -> str:
        """Return the end of the journal of this boot, or of what ONLY selects of it."""
        command = f"journalctl --no-pager --no-hostname --boot --lines {lines} -o short-monotonic"
        return self.execute(f"{command} {only}", timeout=20)[1]

    def post_mortem(self) -> str:
        """Return what a failed test's report needs: the journal, or the console if it is off."""
        if self.is_up():
            with contextlib.suppress(MachineError):
                # A talkative agent must not push healer's own words out of the picture.
                healers = self.journal(only="-u healer.service -u 'healer-*'")
                return f"{self.journal()}\n(healer's own:)\n{healers}"
        return f"(the machine is not up; its console:)\n{self.console()[-_CONSOLE_CHARS:]}"

    @abstractmethod
    def release(self) -> None:
        """Kill the machine and delete all that it wrote."""
