"""Groups: agents that are restarted together, as supervisors of OTP restart their children.

Pure. nix/groups.nix renders a group into dependencies of its units (PartOf=, Wants= and After= of
systemd.unit(5)), so it is systemd that restarts the mates, also while healer is dead. What is told
here is with whom an invocation ended: that was no crash, and nobody asked for it.
"""

from collections.abc import Iterator, Mapping

from healer.config import Config
from healer.events import Ended
from healer.watchdog.agent_state import AgentState


def leaders(config: Config, name: str) -> Iterator[str]:
    """Name the agents with which this one is restarted and stopped."""
    for group in config.groups.values():
        if name not in group.agents:
            continue
        place = group.agents.index(name)
        match group.strategy:
            case "one-for-all":
                yield from (mate for mate in group.agents if mate != name)
            case "rest-for-one":
                yield from group.agents[:place]


def cause(
    config: Config, agents: Mapping[str, AgentState], name: str, ended: Ended
) -> tuple[str, str | None] | None:
    """Return the mate with which this invocation ended, and the mate's incident; None without one.

    It is a mate that crashed during this invocation and restarts, or that healer itself stops.
    """
    for mate in leaders(config, name):
        state = agents.get(mate)
        if state is None:
            continue
        if state.ladder.stopped(ended) or _crashed_during(state, ended):
            return mate, state.incident
    return None


def _crashed_during(mate: AgentState, ended: Ended) -> bool:
    if mate.last_crash is None or ended.start_uptime_ms is None or ended.stop_uptime_ms is None:
        return False
    crash = mate.last_crash.data
    stop = crash["stop_uptime_ms"]
    return (
        crash["restart"] == "will-restart"
        and crash["boot"] == ended.boot
        and stop is not None
        and bool(ended.start_uptime_ms <= stop <= ended.stop_uptime_ms)
    )
