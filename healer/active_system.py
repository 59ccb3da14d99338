"""Which system runs, and whether a switch to another is under way."""

from collections.abc import Callable, Iterable
from pathlib import Path

from healer.decisions import Decisions
from healer.events import Changes, Systems
from healer.host import changes, clock, nix
from healer.host.switch_lock import SwitchLock
from healer.records import Record
from healer.safeswitch import sticking


class ActiveSystem:
    """Looks at the system that runs; every deployment is noticed by this.

    ``record`` takes what is decided. ``deployed`` is called when another system runs, and when a
    switch has ended: it may have brought another configuration.
    """

    def __init__(
        self,
        decisions: Decisions,
        record: Callable[[Iterable[Record]], object],
        deployed: Callable[[], None],
    ) -> None:
        self._decisions = decisions
        self._record = record
        self._deployed = deployed
        self._lock = SwitchLock()
        self._held: sticking.Held | None = None
        self.switching = False

    @property
    def stuck(self) -> bool:
        """Whether a switch holds its lock for so long that this was told."""
        return self._held is not None and self._held.told

    def expect(self) -> None:
        """Prepare for a look that must not wait."""
        self._lock.expect()

    def close(self) -> None:
        """Look no more."""
        self._lock.close()

    async def look(self) -> Systems:
        """Look once, and record what follows."""
        switching = await self._lock.is_held()
        profile = Path(self._decisions.config.safe_switch.profile)
        systems = nix.systems(profile, switching=switching)
        changed = self._changes(systems)
        activated = self._decisions.on_systems(systems, clock.now(), changed)
        self._record(activated)
        if activated or (self.switching and not switching):
            self._deployed()
        self.switching = switching
        self._look_at_lock()
        return systems

    def _look_at_lock(self) -> None:
        now = clock.now()
        held = sticking.look(self._held, now, switching=self.switching)
        limit = self._decisions.config.safe_switch.lock_timeout_sec
        self._held, told = sticking.tell(held, limit, lambda: nix.lock_holder(nix.SWITCH_LOCK), now)
        self._record(told)

    def _changes(self, systems: Systems) -> Changes | None:
        """Compare the system that runs with the one that ran before; None where it is the same."""
        before = self._decisions.deployment.current
        if before is None or systems.current in {None, before} or not Path(before).exists():
            return None
        agents = self._decisions.config.agents
        units = {name: agent.unit for name, agent in agents.items()}
        return changes.of_deployment(before, str(systems.current), units)
