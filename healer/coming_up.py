"""Whether the host comes up in this boot: what root, and boot-complete.target, are told of it."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from healer.decisions import Decisions
from healer.events import Systems, UnitState
from healer.host import clock
from healer.host.environment import Environment
from healer.records import Record
from healer.safeswitch import booting

# Below the runtime directory; healer-boot-complete.service waits for it.
_UP = "up"


class ComingUp:
    """Looks on until every agent is up, and every gate was asked.

    ``record`` takes what is decided. ``tell_up`` and ``tell_excused`` have root take note; each is
    called once at most in a run of healer, also where an earlier run was killed before root had.
    """

    def __init__(
        self,
        decisions: Decisions,
        environment: Environment,
        record: Callable[[Iterable[Record]], object],
        tell_up: Callable[[], None],
        tell_excused: Callable[[], None],
    ) -> None:
        self._decisions = decisions
        self._environment = environment
        self._record = record
        self._tell_up = tell_up
        self._tell_excused = tell_excused
        self._told_up = False
        self._told_excused = False

    def look(self, systems: Systems, units: Mapping[str, UnitState]) -> None:
        """See whether the host has come up, or what keeps it down is to be excused."""
        trouble = self._trouble(systems)
        self._record(self._decisions.on_boot(units, systems, clock.now(), environment=trouble))
        if self._decisions.excused == clock.boot_id() and not self._told_excused:
            self._told_excused = True
            self._tell_excused()
        if self._decisions.came_up == clock.boot_id():
            self._is_up(systems)

    def _trouble(self, systems: Systems) -> list[str] | None:
        """Return what is wrong with the host, where that may excuse this boot."""
        boot, tries = clock.boot_id(), self._decisions.config.safe_switch.boot_tries
        if boot in {self._decisions.came_up, self._decisions.excused}:
            return None
        if not booting.may_be_excused(systems, boot, tries):
            return None
        return self._environment.look()

    def _is_up(self, systems: Systems) -> None:
        if not self._told_up:
            self._told_up = True
            if not booting.is_noted_up(systems):
                self._tell_up()
        marker = Path(self._decisions.config.runtime_dir) / _UP
        if not marker.exists():
            with suppress(OSError):  # agents can fill /run: each look tries again
                marker.touch()
