"""Who acts: each intent is carried out in a task of its own, once it is durable, and its outcome
is recorded, also when there was no way to carry it out.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

from healer import actions
from healer.actions import Done
from healer.control import AgentRequest, Answer, Request, SafeSwitchRequest
from healer.decisions import Decisions
from healer.errors import LedgerIOError, RefusedError
from healer.events import Systems
from healer.helper import TellExcused, TellStable, TellUp
from healer.host import clock
from healer.ledger.entry import Entry
from healer.records import Record
from healer.safeswitch import asked, trial
from healer.watchdog.units import Units

log = logging.getLogger(__name__)

_DEFAULT_HOLD_SEC = 3600
_DEFAULT_CONFIRM_SEC = 120
# Less than the command waits for an answer.
_ANSWER_SEC = 100.0
_POLL_SEC = 0.1
_TRIAL_ENDS_SEC = 5.0
_MEASURE_AGAIN_SEC = 1.0
_IN_TURN = frozenset({"kill", "reset", "restart", "hold", "release", "quarantine", "give-up"})
T = TypeVar("T")


class Actor:
    """Carries out intents.

    ``append`` hands a record to the ledger and ``record`` all that was decided; ``observe`` looks
    at what an action changed, before its outcome is told; ``leave`` ends the daemon.
    """

    def __init__(
        self,
        decisions: Decisions,
        units: Units,
        append: Callable[[Record], "Future[Entry]"],
        record: Callable[[Iterable[Record]], object],
        observe: Callable[[], Awaitable[Systems]],
        leave: Callable[[str], None],
    ) -> None:
        self._decisions = decisions
        self._units = units
        self._append = append
        self._record = record
        self._observe = observe
        self._leave = leave
        self._standby = actions.Standby()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: dict[int, str] = {}

    def begin(self, intent: Record, written: "Future[Entry]") -> None:
        """Carry out an intent once it is durable."""
        self._spawn(self._carry_out_durable(intent, written))

    def resume(self, entry: Entry) -> None:
        """Carry out an intent that an earlier run of the daemon left without an outcome."""
        log.info("resuming %s of entry %d", entry.data["action"], entry.seq)
        self._spawn(self._carry_out(entry))

    def cancel(self) -> None:
        """Stop acting; what has no outcome is resumed by the next run."""
        for task in self._tasks:
            task.cancel()
        self._standby.close()

    def expect_rollback(self) -> None:
        """Have a helper ready: the deployment may be blamed at the next crash."""
        self._spawn(self._standby.prepare(self._decisions.config))

    def measure(self, activated: Record) -> None:
        """Have a deployment measured against the one before it, in its own time."""
        self._spawn(self._measure(activated))

    async def _measure(self, activated: Record) -> None:
        # It takes a helper and seconds of Nix's time: a rollback under way goes first, and is
        # measured itself when it is over. So does a switch.
        while self._decisions.deployment.rolling_back or (await self._observe()).switching:
            await asyncio.sleep(_MEASURE_AGAIN_SEC)
        data = {key: activated.data[key] for key in ("toplevel", "previous")}
        figures = await actions.measure(data["previous"], data["toplevel"], self._decisions.config)
        if figures:
            self._record([Record(clock.now(), "deployment.closure", {**data, **figures})])

    def tell_up(self) -> None:
        """Tell root that the host has come up."""
        self._spawn(actions.tell(TellUp(), self._decisions.config))

    def tell_excused(self) -> None:
        """Tell root that this boot is not to be counted against its system."""
        self._spawn(actions.tell(TellExcused(), self._decisions.config))

    def tell_stable(self) -> None:
        """Tell root that healer itself has come up, and stays so."""
        self._spawn(actions.tell(TellStable(), self._decisions.config))

    async def ask(self, request: Request, who: str) -> Answer:
        """Do what a person asks, and tell that person what became of it."""
        if isinstance(request, AgentRequest):
            return await self._ask_agent(request, who)
        return await self._ask_safe_switch(request, who)

    async def _ask_safe_switch(self, request: SafeSwitchRequest, who: str) -> Answer:
        await self._tell_of_ended_trial()
        systems = await self._observe()
        known, going = self._decisions.deployment, self._decisions.trial
        try:
            data = asked.intend(request.verb, request.toplevel, who, known, going, systems)
        except RefusedError as error:
            return Answer(False, str(error))
        data["grant"] = request.grant
        if data["action"] == "try":
            data["confirm_sec"] = request.confirm_sec or _DEFAULT_CONFIRM_SEC
        intent = Record(clock.now(), "action.intent", data)
        self._decisions.replay(intent)
        written = self._append(intent)
        task = self._spawn(self._carry_out_durable(intent, written))
        answer = await self._answer(task, written)
        return Answer(answer.ok, answer.detail + asked.warnings(data, self._decisions.deployment))

    async def _answer(self, task: "asyncio.Task[Answer]", written: "Future[Entry]") -> Answer:
        """Wait for the outcome; but not for a trial's, nor for a reboot, which take long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ANSWER_SEC
        while not task.done() and loop.time() < deadline:
            if written.done() and written.exception() is None:
                entry = written.result()
                if trial.of(entry) is not None:
                    return Answer(True, "its trial has begun")
                if entry.seq in self._waiting:
                    return Answer(True, self._waiting[entry.seq])
            await asyncio.sleep(_POLL_SEC)
        if task.done():
            return task.result()
        return Answer(True, "it is under way: healer safeswitch status tells how it goes")

    async def _tell_of_ended_trial(self) -> None:
        """Wait for the outcome of a trial that is over, as whoever asked for it may know already.

        Until then the next is refused as one too many.
        """
        going, loop = self._decisions.trial, asyncio.get_running_loop()
        deadline = loop.time() + _TRIAL_ENDS_SEC
        while going is not None and trial.under_way() is None and loop.time() < deadline:
            await asyncio.sleep(_POLL_SEC)
            going = self._decisions.trial

    async def _ask_agent(self, request: AgentRequest, who: str) -> Answer:
        agent = self._decisions.config.agents.get(request.agent)
        if agent is None:
            names = ", ".join(sorted(self._decisions.config.agents))
            there = f"there are: {names}" if names else "none is declared"
            return Answer(False, f"there is no agent {request.agent}; {there}")
        data: dict[str, object] = {
            "action": request.verb,
            "target": agent.unit,
            "agent": request.agent,
            "asked_by": who,
            "reason": f"{who} asked for it",
        }
        if request.verb == "hold":
            data["ttl_sec"] = request.ttl_sec or _DEFAULT_HOLD_SEC
        incident = self._decisions.agent(request.agent).story
        intent = Record(clock.now(), "action.intent", data, incident)
        self._decisions.replay(intent)
        task = self._spawn(self._carry_out_durable(intent, self._append(intent)))
        await asyncio.wait([task], timeout=_ANSWER_SEC)
        if task.done():
            return task.result()
        return Answer(True, "it is recorded and under way; the ledger will have its outcome")

    def remove_stamps(self, names: list[str], done: Callable[[], None]) -> None:
        """Have recorded stamps removed; ``done`` is called when that may be tried again."""
        self._spawn(self._remove_stamps(names, done))

    async def _remove_stamps(self, names: list[str], done: Callable[[], None]) -> None:
        removed = await actions.remove_stamps(names, self._decisions.config)
        if not removed.ok:
            log.warning("recorded stamps stay where they are: %s", removed.detail)
            await asyncio.sleep(actions.RETRY_REMOVAL_SEC)
        done()

    async def _carry_out_durable(self, intent: Record, written: "Future[Entry]") -> Answer:
        try:
            entry = await asyncio.wrap_future(written)
        except LedgerIOError as error:
            # What cannot be recorded is not done: nobody could tell afterwards.
            return self._came_of(intent, None, Done(False, str(error)))
        return await self._carry_out(entry)

    async def _carry_out(self, entry: Entry) -> Answer:
        intent = Record(clock.now(), entry.type, entry.data, entry.incident)

        def waits(done: Done) -> None:
            self._waiting[entry.seq] = done.detail
            if self._decisions.deployment.staged is not None:
                return  # by an earlier run of the daemon
            data = {"intent": entry.seq, "target": entry.data["target"], "reason": done.waiting}
            staged = {**data, "detail": done.detail}
            record = Record(clock.now(), "rollback.staged", staged, entry.incident)
            self._decisions.replay(record)
            self._record([record])

        async with self._turn(entry):
            config, unit_state = self._decisions.config, self._units.state_of
            done = await actions.carry_out(entry, config, unit_state, self._standby, waits)
            await self._observe()
            return self._came_of(intent, entry.seq, done)

    def _turn(self, entry: Entry) -> AbstractAsyncContextManager[object]:
        """Have what is done to one agent's unit done in the order in which it was decided.

        Who asked last has the last word, also where an earlier action is slow or is resumed.
        """
        if entry.data["action"] not in _IN_TURN:
            return nullcontext()
        return self._turns.setdefault(str(entry.data["target"]), asyncio.Lock())

    def _came_of(self, intent: Record, seq: int | None, done: Done) -> Answer:
        """Record the outcome of an intent, and what follows from it."""
        data = {
            "intent": seq,
            "action": intent.data["action"],
            "agent": intent.data.get("agent"),
            "asked_by": intent.data.get("asked_by"),
            "ok": done.ok,
            "detail": done.detail,
            "running": done.running,
            "lasts": done.lasts,
            "steps": done.steps,
        }
        outcome = Record(clock.now(), "action.outcome", data, intent.incident)
        told = self._decisions.on_outcome(outcome, intent)
        self._record(told)
        return Answer(done.ok, told[0].data["detail"])

    def _spawn(self, job: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Crash-only: systemd starts healer again, and the intent is resumed from the ledger.
            log.error("an action failed unexpectedly", exc_info=error)
            self._leave("an action failed unexpectedly")
