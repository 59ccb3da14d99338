"""The ladder above the restart: what follows when an agent has spent its crash-loop budget. Pure.

systemd restarts the agent and backs off; SafeSwitch comes first and rolls back a deployment that is
to blame. What is left is answered here, least impact first: *quarantine* (the agent is held back
for a time and begins anew), after a number of these a *reboot* into the known-good system where the
owner allows it and no agent minds, and then the agent is *given up*: it stays down until a person
releases it. What must hold, whatever the history:

- a spent budget is answered by one step at most, and not while another step is under way; so is a
  crash whose rule says ``escalate``. Crashes from before a step that are learnt of behind it are
  answered by it;
- the steps go up only, until the agent recovers, another system runs, or a person steps in;
- what is held in quarantine is let go, by healer itself where PID 1's timer did not;
- an agent that was given up gets no further step.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from healer.config import Agent
from healer.events import Ended, Instant, UnitState
from healer.records import Record

# PID 1's timer is exact to a second, and starts a program: later than this it did not come.
_TIMER_SLACK_MS = 10_000
_RELEASE_AGAIN_MS = 60_000
# A switch, the evidence against a deployment, and a unit that is slow to stop, are waited for at
# most so long.
_PATIENCE_MS = 60_000
_SETTLED_MS = 1000
_DAY_US = 86_400_000_000
_STEPS = frozenset({"quarantine", "reboot", "give-up"})


@dataclass(frozen=True, slots=True)
class Spent:
    """The budget is spent, or a rule asks for the next step, and nothing has answered it yet.

    That is so since ``at``; ``unplaced`` says that it is not known under which system the agent
    crashed.
    """

    reason: str
    at: Instant
    unplaced: bool = False


class Held(msgspec.Struct, frozen=True):
    """A quarantine by this intent (seq), to be over at ``until_ms`` of its boot.

    Where it is not ``sure``, root did not say that it came off; it may have, all the same.
    """

    intent: int | None
    since: Instant
    until_ms: int
    sure: bool


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The last step, by this intent (seq); ``stopped`` says whether it came off."""

    intent: int | None
    since: Instant
    reason: str
    stopped: bool
    detail: str


class Ladder(msgspec.Struct, frozen=True):
    """Where one agent stands.

    ``pending`` is the step that was intended and has no outcome yet, ``giving_up`` the last step
    while its end is awaited and ``gave_up`` after that. Crashes up to ``answered`` are answered.
    ``unit_changed`` says that a deployment has changed the unit since, and ``refused`` when root
    last could not let it go.
    """

    spent: Spent | None = None
    quarantines: int = 0
    rebooted: bool = False
    pending: str | None = None
    pending_until: Instant | None = None
    pending_reason: str = ""
    held: Held | None = None
    giving_up: GivenUp | None = None
    gave_up: GivenUp | None = None
    answered: Instant | None = None
    unit_changed: bool = False
    refused: Instant | None = None

    def stopped(self, ended: Ended) -> bool:
        """Whether a step stopped this run, of the agent's or of a mate's: it began before it."""
        down = self.held is not None or self.giving_up is not None or self.gave_up is not None
        if self.pending in {"quarantine", "give-up"} or self.answered is None:
            return down or self.pending in {"quarantine", "give-up"}
        began_ms = ended.stop_uptime_ms if ended.start_uptime_ms is None else ended.start_uptime_ms
        same_boot = ended.boot == self.answered.boot
        return down and not (same_boot and (began_ms or 0) > self.answered.uptime_ms)

    def knows_more(self, agent: Agent) -> bool:
        """Whether an agent that is down is so for now only, or its end is told by ``decide``."""
        due = self.spent is not None and agent.escalation.enable
        return due or self.pending is not None or self.held is not None or bool(self.giving_up)

    @property
    def is_still(self) -> bool:
        """Whether there is nothing to decide."""
        waits = self.spent is not None or self.held is not None or self.giving_up is not None
        return self.pending is not None or not (waits or self.unit_changed)

    @property
    def is_free(self) -> bool:
        """Whether a step may be taken: none is under way, and none holds the agent down."""
        down = self.held is not None or self.giving_up is not None or self.gave_up is not None
        return self.pending is None and not down


@dataclass(frozen=True, slots=True)
class Host:
    """What a step depends on beside the agent; ``deploying`` is a rollback, or a trial.

    ``judging`` says that a deployment is on probation, which may be rolled back yet.
    ``minding`` names the agents under which the known-good system must not come back by a reboot.
    """

    known_good: str | None
    may_reboot: bool
    deploying: bool
    switching: bool
    judging: bool = False
    minding: tuple[str, ...] = ()


def is_answered(ladder: Ladder, crash: Record) -> bool:
    """Whether this crash happened before the last step, and is learnt of only now."""
    if ladder.answered is None:
        return False
    boot, stop_ms = crash.data["boot"], crash.data["stop_uptime_ms"]
    if boot != crash.at.boot:
        return True
    happened_ms = crash.at.uptime_ms if stop_ms is None else stop_ms
    return bool(boot == ladder.answered.boot and happened_ms <= ladder.answered.uptime_ms)


def begins_anew(outcome: Record) -> bool:
    """Whether the budget begins anew with what this is the outcome of: a step, or a person's."""
    by_person = outcome.data["ok"] and outcome.data.get("asked_by") is not None
    return by_person or outcome.data["action"] in _STEPS | {"release"}


def apply(ladder: Ladder, record: Record, name: str) -> Ladder:
    """Fold one record that concerns the agent ``name`` into its ladder."""
    data = record.data
    match record.type:
        case "agent.crash" if not is_answered(ladder, record):
            # Whatever held it back, it ran again.
            ladder = replace(ladder, held=None, gave_up=None)
            if data.get("answer") == "escalate":
                return _spend(ladder, record, "its rule for this end says escalate")
            return ladder
        case "agent.crash-loop":
            return _spend(ladder, record, data["reason"], unplaced=data["toplevel"] is None)
        case "agent.recovered":
            return _anew(ladder, answered=ladder.answered)
        case "agent.not-restarted" | "agent.missing":
            return replace(ladder, spent=None)
        case "agent.released" | "agent.exit" | "agent.stopped" if data.get("by") != "healer":
            return replace(ladder, held=None)
        case "agent.gave-up" | "agent.undeclared":
            last = ladder.giving_up or ladder.gave_up
            return replace(ladder, spent=None, giving_up=None, gave_up=last)
        case "action.intent" if "asked_by" not in data:
            return _intended(ladder, record)
        case "action.outcome" if data.get("asked_by") is None:
            return _came_of(ladder, record)
        case "action.outcome" if data["ok"]:
            return _person_stepped_in(ladder, record)
        case "deployment.activated" if data["toplevel"] != data["previous"]:
            return _deployed(ladder, data, name)
        case _:
            return ladder


def decide(
    name: str,
    agent: Agent,
    ladder: Ladder,
    incident: str | None,
    unit: UnitState | None,
    host: Host,
    now: Instant,
) -> Iterator[Record]:
    """Take the next step, end a quarantine that is over, or say that the agent was given up."""
    if ladder.pending is not None:
        return
    common = {"agent": name, "unit": agent.unit}
    if ladder.giving_up is not None:
        yield from _given_up(ladder.giving_up, common, incident, unit, now)
    elif ladder.gave_up is not None:
        if ladder.unit_changed and _may_let_go(ladder, host, now):
            yield _release(ladder.gave_up.intent, "its unit was changed", common, incident, now)
    elif ladder.held is not None:
        yield from _end_of_quarantine(ladder, ladder.held, common, incident, unit, host, now)
    elif ladder.spent is not None and agent.escalation.enable:
        # Crashes of which it is not known where they belong blame no deployment: the next ones do.
        comes_first = host.switching or (host.judging and ladder.spent.unplaced)
        busy = comes_first and _within(ladder.spent.at, now, _PATIENCE_MS)
        if not busy and not host.deploying and _is_unwell(agent, unit, now):
            yield _step(ladder, ladder.spent, agent, common, incident, host, now)


def reboots_in_a_day(reboots: tuple[Instant, ...], now: Instant) -> int:
    """Count the reboots within 24 hours of the clock's time; those from the future count too."""
    return sum(now.time_us - reboot.time_us < _DAY_US for reboot in reboots)


def _is_unwell(agent: Agent, unit: UnitState | None, now: Instant) -> bool:
    """Whether the agent is known not to have held since: it may have crashed long ago."""
    return unit is not None and not unit.has_held(agent.stable_sec, now.uptime_ms)


def _step(
    ladder: Ladder,
    spent: Spent,
    agent: Agent,
    common: Mapping[str, str],
    incident: str | None,
    host: Host,
    now: Instant,
) -> Record:
    limits, done = agent.escalation, ladder.quarantines
    intent: dict[str, object] = {"agent": common["agent"], "target": agent.unit}
    after = f"{spent.reason}, after {done} quarantine{'' if done == 1 else 's'}"
    if done < limits.max_quarantines:
        intent |= {
            "action": "quarantine",
            "ttl_sec": math.ceil(limits.quarantine_sec),
            "reason": f"{spent.reason}: quarantine {done + 1} of {limits.max_quarantines}",
        }
        return Record(now, "action.intent", intent, incident)
    may_reboot = host.may_reboot and host.known_good is not None and not ladder.rebooted
    if may_reboot and not host.minding:
        intent |= {"action": "reboot", "target": host.known_good, "reason": after}
    else:
        more = " and asking for a reboot" if ladder.rebooted else ""
        if may_reboot:
            names = ", ".join(host.minding)
            more = f"; a reboot into the known-good would undo the deployment under {names}"
        intent |= {"action": "give-up", "reason": after + more}
    return Record(now, "action.intent", intent, incident)


def _end_of_quarantine(
    ladder: Ladder,
    held: Held,
    common: Mapping[str, str],
    incident: str | None,
    unit: UnitState | None,
    host: Host,
    now: Instant,
) -> Iterator[Record]:
    if held.since.boot != now.boot:
        yield Record(now, "agent.released", {**common, "by": "boot"}, incident)
    elif unit is None:
        return
    elif not unit.gave_up and unit.since_ms > held.since.uptime_ms:
        yield Record(now, "agent.released", {**common, "by": "timer"}, incident)
    elif not unit.gave_up and not held.sure:
        yield Record(now, "agent.released", {**common, "by": "failure"}, incident)
    elif ladder.unit_changed and _may_let_go(ladder, host, now):
        yield _release(held.intent, "its unit was changed", common, incident, now)
    elif now.uptime_ms >= held.until_ms + _TIMER_SLACK_MS:
        if not unit.gave_up:
            # It would not stop.
            yield Record(now, "agent.released", {**common, "by": "timer"}, incident)
        elif not _was_refused(ladder, now):
            reason = "its quarantine is over, and nothing has started it"
            yield _release(held.intent, reason, common, incident, now)


def _may_let_go(ladder: Ladder, host: Host, now: Instant) -> bool:
    return not (host.switching or _was_refused(ladder, now))


def _was_refused(ladder: Ladder, now: Instant) -> bool:
    """Whether root could not let it go a moment ago: it is asked again later."""
    return ladder.refused is not None and _within(ladder.refused, now, _RELEASE_AGAIN_MS)


def _release(
    hold: int | None, reason: str, common: Mapping[str, str], incident: str | None, now: Instant
) -> Record:
    intent = {
        "action": "release",
        "target": common["unit"],
        "agent": common["agent"],
        "hold": hold,
        "reason": reason,
    }
    return Record(now, "action.intent", intent, incident)


def _given_up(
    last: GivenUp,
    common: Mapping[str, str],
    incident: str | None,
    unit: UnitState | None,
    now: Instant,
) -> Iterator[Record]:
    """Say it once the last of its crashes can be recorded, so that it ends their incident."""
    down = unit is not None and unit.gave_up
    settled = down and unit is not None and now.uptime_ms - unit.since_ms >= _SETTLED_MS
    if settled or not last.stopped or not _within(last.since, now, _PATIENCE_MS):
        data = {**common, "reason": last.reason, "stopped": last.stopped, "detail": last.detail}
        yield Record(now, "agent.gave-up", data, incident)


def _anew(ladder: Ladder, answered: Instant | None) -> Ladder:
    """Begin from the bottom; a step that is under way still has its outcome to come."""
    return Ladder(
        pending=ladder.pending,
        pending_until=ladder.pending_until,
        pending_reason=ladder.pending_reason,
        answered=answered,
    )


def _spend(ladder: Ladder, record: Record, reason: str, *, unplaced: bool = False) -> Ladder:
    if not ladder.is_free:
        return ladder
    since = record.at if ladder.spent is None else ladder.spent.at
    return replace(ladder, spent=Spent(reason, since, unplaced))


def _intended(ladder: Ladder, record: Record) -> Ladder:
    action = record.data["action"]
    if action == "release":
        return replace(ladder, pending=action)
    if action not in _STEPS:
        return ladder
    until_ms = record.at.uptime_ms + record.data.get("ttl_sec", 0) * 1000
    return replace(
        ladder,
        spent=None,
        quarantines=ladder.quarantines + (action == "quarantine"),
        rebooted=ladder.rebooted or action == "reboot",
        pending=action,
        pending_until=Instant(record.at.boot, until_ms),
        pending_reason=record.data["reason"],
    )


def _came_of(ladder: Ladder, record: Record) -> Ladder:
    """Fold the outcome of one of healer's own actions."""
    data = record.data
    if data["action"] != ladder.pending:
        return ladder
    done, intent = replace(ladder, pending=None), data.get("intent")
    if ladder.pending == "release":
        return _released(done, record)
    done = replace(done, answered=record.at)
    until = ladder.pending_until
    if ladder.pending == "quarantine" and intent is not None and until is not None:
        # A hold ends with its boot, and root places none of a boot before.
        held = Held(intent, record.at, until.uptime_ms, data["ok"])
        return replace(done, held=held) if until.boot == record.at.boot else done
    if ladder.pending == "give-up":
        last = GivenUp(intent, record.at, ladder.pending_reason, data["ok"], data["detail"])
        return replace(done, giving_up=last)
    return done


def _released(ladder: Ladder, record: Record) -> Ladder:
    if record.data["ok"]:
        anew = ladder.gave_up is not None or ladder.unit_changed
        return Ladder() if anew else replace(ladder, held=None)
    return replace(ladder, refused=record.at)


def _person_stepped_in(ladder: Ladder, record: Record) -> Ladder:
    match record.data["action"]:
        case "release":
            return _anew(ladder, answered=record.at)
        case "hold":
            began = replace(ladder, spent=None, quarantines=0, rebooted=False)
            return replace(began, held=None, answered=record.at)
        case "restart" | "reset":
            return replace(ladder, spent=None, quarantines=0, rebooted=False)
        case _:
            return ladder


def _deployed(ladder: Ladder, data: Mapping[str, object], name: str) -> Ladder:
    """Begin anew under another system; whom it holds, a changed unit alone releases."""
    changes = data.get("changes")
    agents = changes.get("agents") if isinstance(changes, Mapping) else None
    changed = isinstance(agents, Mapping) and agents.get(name) in {"changed", "added"}
    down = ladder.held is not None or ladder.gave_up is not None or ladder.giving_up is not None
    return replace(
        ladder,
        spent=None,
        quarantines=0,
        unit_changed=down and (ladder.unit_changed or changed),
    )


def _within(moment: Instant, now: Instant, milliseconds: int) -> bool:
    return moment.boot == now.boot and now.uptime_ms - moment.uptime_ms < milliseconds
