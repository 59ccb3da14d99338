"""The typed facts that flow from the host to the decisions.

Times are milliseconds on CLOCK_BOOTTIME (``uptime_ms``): it never steps, and it counts while the
machine is suspended. A fact of an earlier boot carries that boot's id, and its times are of that
boot.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AnswerKind = Literal["restart", "delay", "backoff", "stop", "escalate", "rollback"]
"""What a restart policy answers to an end: the next run at once, after a pause or after a growing
one, no next run, healer's next step, or the rollback of the deployment."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory state of an invocation's cgroup at its end, in bytes (cgroup-v2 memory.*).

    Of memory.events: ``oom_kill`` processes were killed, ``oom`` times at the cgroup's own limit;
    when it was never at that, memory ran out on the host.
    """

    peak: int | None
    current: int | None
    oom_kill: int | None
    pressure: str | None
    oom: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """One invocation ended: what systemd.exec(5) gives to ExecStopPost=, and the evidence beside.

    ``result``, ``code`` and ``status`` are ``$SERVICE_RESULT``, ``$EXIT_CODE`` and
    ``$EXIT_STATUS``: the status is a number when the process exited, a signal name without SIG
    when it was killed, and empty when no process was started. ``source`` says where healer learnt
    of it: the stamp written by PID 1, or, where that is missing, the journal.

    The rest only stamps know. ``unit_file`` is the file that the invocation was started from.
    ``in_a_row`` counts the crashes up to this one, none of them after a stable run. ``answer`` is
    the restart rule that PID 1 found, if there are any that systemd has no setting for,
    ``delay_ms`` the pause after which a timer of PID 1's starts the next run, and ``asked`` whether
    somebody asked for this end, where the stamp had to know.
    """

    unit: str
    invocation: str
    boot: str
    result: str
    code: str
    status: str
    start_uptime_ms: int | None
    stop_uptime_ms: int | None
    toplevel: str | None
    memory: Memory | None
    source: str
    in_a_row: int | None = None
    answer: AnswerKind | None = None
    delay_ms: int | None = None
    asked: bool | None = None
    unit_file: str | None = None

    @property
    def stamp(self) -> str:
        """The file name of this end's stop stamp, whether there is one or not."""
        return f"{self.unit}.{self.invocation}.stop"

    @property
    def runtime_ms(self) -> int | None:
        """How long the invocation ran, or None where its start is not known."""
        if self.start_uptime_ms is None or self.stop_uptime_ms is None:
            return None
        return max(0, self.stop_uptime_ms - self.start_uptime_ms)


@dataclass(frozen=True, slots=True)
class CoreDump:
    """What systemd-coredump(8) said of a process of an invocation: of which program, by which
    signal (without SIG), and the stack of the thread that died, innermost frame first.
    """

    unit: str
    invocation: str
    pid: int | None
    executable: str
    signal: str
    stack: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Death:
    """The kernel's word that a process is gone.

    When that was, in milliseconds since boot, and its status by wait(2), None where the kernel
    tells that to the parent only.
    """

    uptime_ms: int
    wait_status: int | None


@dataclass(frozen=True, slots=True)
class Context:
    """What the agent was doing when it ended, and how its end came to be."""

    stop_requested: bool = False
    switching: bool = False
    status_text: str | None = None
    journal: tuple[str, ...] = ()
    n_restarts: int | None = None
    death: Death | None = None
    breadcrumb: str | None = None


@dataclass(frozen=True, slots=True)
class UnitState:
    """A unit as systemd sees it now (org.freedesktop.systemd1.Unit and .Service).

    ``since_us`` is CLOCK_REALTIME, for people; ``since_ms``, ``active_enter_ms`` and ``start_ms``,
    when its main process was started, count from the boot. ``notifies`` says that it is active
    only once it told systemd so (Type=notify), ``start_limit`` that systemd gives it up after too
    many starts (StartLimitBurst=, which healer turns off), and ``first_status`` what this
    invocation said first by STATUS=.
    """

    active_state: str
    sub_state: str
    invocation: str
    main_pid: int
    n_restarts: int
    status_text: str
    since_us: int
    since_ms: int
    active_enter_ms: int
    start_ms: int | None = None
    notifies: bool = False
    start_limit: bool = False
    first_status: str | None = None

    @property
    def running(self) -> bool:
        """Whether an invocation is up: started, or reloading."""
        return self.active_state in {"active", "reloading", "refreshing"}

    @property
    def gave_up(self) -> bool:
        """Whether systemd will not start it again by itself."""
        return self.active_state in {"failed", "inactive"}

    def has_held(self, stable_sec: float, now_ms: int) -> bool:
        """Whether the run that is up has been so for ``stable_sec``."""
        return self.running and now_ms - self.active_enter_ms >= stable_sec * 1000


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment: the boot it is in and the milliseconds since that boot.

    ``time_us`` is CLOCK_REALTIME in microseconds, for people only: it may step.
    """

    boot: str
    uptime_ms: int
    time_us: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Systems:
    """Which toplevel is where: the separate facts of a NixOS host, each None where it is absent.

    ``boot_default`` is what the next boot starts, where the boot loader's files can be read.
    ``specialisation`` is the name of the running specialisation, and ``base`` the toplevel that it
    belongs to, which the profile holds; without one the base is the running toplevel.
    """

    current: str | None
    booted: str | None
    profile: str | None
    generation: int | None
    switching: bool
    boot_default: str | None = None
    base: str | None = None
    specialisation: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between a toplevel and the one that ran before it.

    ``agents`` says of each declared agent's unit, with all that it reads from the toplevel, whether
    it is "same", "changed" or "added"; ``shared`` names what all agents share and what differs.
    """

    agents: Mapping[str, str]
    shared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address that can be used, and the interface it is assigned to."""

    interface: str
    address: str


NO_DEFAULT_ROUTE = "the default route is gone"
"""What is wrong with a host that had one: the one trouble that a deployment may well be behind."""


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route; ``answers`` says whether its gateway answers to ARP or NDP."""

    interface: str
    gateway: str | None
    answers: Literal["yes", "no", "unknown"] = "unknown"


@dataclass(frozen=True, slots=True)
class Network:
    """The host's network at one moment; ``up`` are the interfaces that can carry packets."""

    up: frozenset[str] = frozenset()
    addresses: tuple[Address, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()
