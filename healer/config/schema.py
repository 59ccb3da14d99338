"""The declared machine: what /etc/healer/config.yaml says, as typed values.

The file is rendered by nix/config.nix; its keys are camelCase (`delaySec`), the attributes here are
their snake_case. Every duration is a number of seconds. The defaults are those of nix/defaults.nix;
tests/nix holds the two together.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# A year is longer than anything sensible, and keeps every duration well inside a 64-bit number of
# microseconds.
MAX_SEC = 365 * 86400

Seconds = Annotated[float, Meta(ge=0, le=MAX_SEC)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=MAX_SEC)]
# Polling faster than this costs more than it can tell.
IntervalSeconds = Annotated[float, Meta(ge=0.1, le=MAX_SEC)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
ExitCode = Annotated[int, Meta(ge=0, le=255)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Bytes = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Section(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A mapping of the file; immutable, so that the decisions can share it."""


class Rule(Section, frozen=True, kw_only=True):
    """What conditional restarting does after these exit codes, signals and classes of crash.

    ``delay_sec`` goes with the action ``restart``; None is the policy's own delay.
    """

    exit_codes: tuple[ExitCode, ...] = ()
    signals: tuple[str, ...] = ()
    classes: tuple[Literal["oom", "watchdog", "core-dump", "timeout", "health"], ...] = ()
    action: Literal["restart", "backoff", "stop", "escalate", "rollback"] = "stop"
    delay_sec: Seconds | None = None


class Restart(Section, frozen=True, kw_only=True):
    """The restart policy that nix/restart.nix wrote into the unit; systemd carries it out."""

    policy: Literal["immediate", "exponential", "conditional", "never"] = "immediate"
    on: Literal["always", "failure"] = "always"
    delay_sec: Seconds = 0.0
    max_delay_sec: PositiveSeconds = 60.0
    steps: Annotated[int, Meta(ge=1, le=1000)] = 8
    rules: tuple[Rule, ...] = ()
    otherwise: Literal["restart", "backoff", "stop"] = "restart"


class CrashLoop(Section, frozen=True, kw_only=True):
    """The crash budget: more is a crash loop.

    `max_crashes` within `window_sec`, or as many runs in a row shorter than `early_death_sec`,
    because a growing delay between restarts hides a loop from the window.
    """

    max_crashes: Annotated[int, Meta(ge=1, le=1000)] = 5
    window_sec: PositiveSeconds = 60.0
    early_death_sec: Seconds = 10.0


class AgentEscalation(Section, frozen=True, kw_only=True):
    """The steps above the restart for one agent in a crash loop; healer/watchdog/ladder.py."""

    enable: bool = True
    quarantine_sec: Annotated[float, Meta(ge=1, le=MAX_SEC)] = 300.0
    max_quarantines: Annotated[int, Meta(ge=0, le=1_000_000)] = 3


class Check(Section, frozen=True, kw_only=True, tag_field="type"):
    """What every health check has; healer/watchdog/health.py says what a purpose means."""

    name: str
    purpose: Literal["liveness", "readiness", "startup"] = "liveness"
    interval_sec: IntervalSeconds = 3.0
    timeout_sec: PositiveSeconds = 2.0
    failure_threshold: Count = 3
    success_threshold: Count = 1
    start_grace_sec: Seconds = 10.0


class HttpCheck(Check, frozen=True, kw_only=True, tag="http"):
    """GET `url` answers with the status `expect_status`, and a body that has what is asked for.

    `body_matches` is a regular expression of Python's. `ca_file` (PEM) replaces the system's
    authorities; `insecure` accepts any certificate.
    """

    url: str
    expect_status: Annotated[int, Meta(ge=100, le=599)] = 200
    body_contains: str | None = None
    body_matches: str | None = None
    ca_file: str | None = None
    insecure: bool = False


class TcpCheck(Check, frozen=True, kw_only=True, tag="tcp"):
    """A TCP connection to `host`:`port` is accepted."""

    host: str = "127.0.0.1"
    port: Port


class ListenCheck(Check, frozen=True, kw_only=True, tag="listen"):
    """A TCP socket listens on `port`, at the address `host` or at any; nothing connects to it."""

    host: str | None = None
    port: Port


class CommandCheck(Check, frozen=True, kw_only=True, tag="command"):
    """`command`, run by the daemon's user without a shell, exits with 0."""

    command: tuple[str, ...]


class LogCheck(Check, frozen=True, kw_only=True, tag="log"):
    """No line that this invocation wrote to the journal matches `pattern`.

    It is a regular expression of Python's, looked for anywhere in the line.
    """

    pattern: str


class MemoryCheck(Check, frozen=True, kw_only=True, tag="memory"):
    """The unit's cgroup holds at most `max_bytes` (memory.current).

    Where there is no memory controller, the resident set of the main process counts.
    """

    max_bytes: Bytes


class FileCheck(Check, frozen=True, kw_only=True, tag="file"):
    """The file at `path` was written (mtime) less than `max_age_sec` ago."""

    path: str
    max_age_sec: PositiveSeconds


HealthCheck = HttpCheck | TcpCheck | ListenCheck | CommandCheck | LogCheck | MemoryCheck | FileCheck


class GateBase(Section, frozen=True, kw_only=True, tag_field="type"):
    """What every gate has: something on the host that must hold while a deployment is judged.

    A type that health checks have too has their options; but a gate has neither purpose nor grace.
    """

    name: str
    interval_sec: IntervalSeconds = 3.0
    timeout_sec: PositiveSeconds = 2.0
    failure_threshold: Count = 3


class HttpGate(GateBase, frozen=True, kw_only=True, tag="http"):
    """What HttpCheck is for an agent."""

    url: str
    expect_status: Annotated[int, Meta(ge=100, le=599)] = 200
    body_contains: str | None = None
    body_matches: str | None = None
    ca_file: str | None = None
    insecure: bool = False


class TcpGate(GateBase, frozen=True, kw_only=True, tag="tcp"):
    """What TcpCheck is for an agent."""

    host: str = "127.0.0.1"
    port: Port


class ListenGate(GateBase, frozen=True, kw_only=True, tag="listen"):
    """What ListenCheck is for an agent."""

    host: str | None = None
    port: Port


class CommandGate(GateBase, frozen=True, kw_only=True, tag="command"):
    """What CommandCheck is for an agent."""

    command: tuple[str, ...]


class UnitGate(GateBase, frozen=True, kw_only=True, tag="unit"):
    """The systemd unit `unit`, of any type, is active."""

    unit: str


class NetworkGate(GateBase, frozen=True, kw_only=True, tag="network"):
    """The host can still be reached, as the kernel has it (rtnetlink(7)).

    `interface` is up, and the rest is looked for on it; null stands for any. `default_route`:
    there is one. `gateway`: that of one answers (ARP, NDP). `addresses` are assigned. `sshd`:
    something listens on this TCP port.
    """

    interface: str | None = None
    default_route: bool = False
    gateway: bool = False
    addresses: tuple[str, ...] = ()
    sshd: Port | None = None


Gate = HttpGate | TcpGate | ListenGate | CommandGate | UnitGate | NetworkGate
CheckGate = HttpGate | TcpGate | ListenGate | CommandGate


def as_check(gate: CheckGate) -> HttpCheck | TcpCheck | ListenCheck | CommandCheck:
    """Return the health check that looks at the same."""
    kinds: dict[type[GateBase], type[HttpCheck | TcpCheck | ListenCheck | CommandCheck]] = {
        HttpGate: HttpCheck,
        TcpGate: TcpCheck,
        ListenGate: ListenCheck,
        CommandGate: CommandCheck,
    }
    return kinds[type(gate)](**msgspec.structs.asdict(gate))


class Agent(Section, frozen=True, kw_only=True):
    """One supervised systemd service.

    ``last_crash`` says that it is told how its last run ended, and ``breadcrumb`` names the file in
    its state directory that it leaves for its next run.
    """

    unit: str
    restart: Restart = Restart()
    crash_loop: CrashLoop = CrashLoop()
    escalation: AgentEscalation = AgentEscalation()
    stable_sec: PositiveSeconds = 60.0
    health: tuple[HealthCheck, ...] = ()
    journal_lines: Annotated[int, Meta(ge=0, le=1000)] = 20
    rollback_safe: bool = True
    snapshot: tuple[str, ...] | None = None
    before_rollback: tuple[str, ...] | None = None
    before_rollback_timeout_sec: PositiveSeconds = 60.0
    last_crash: bool = False
    breadcrumb: str | None = None


class Group(Section, frozen=True, kw_only=True):
    """Agents that belong together, in their order, and which of them restart with which."""

    strategy: Literal["one-for-one", "rest-for-one", "one-for-all"] = "one-for-one"
    agents: tuple[str, ...]


class Escalation(Section, frozen=True, kw_only=True):
    """The steps of the ladder that concern the whole host."""

    reboot: bool = False
    max_reboots_per_day: Annotated[int, Meta(ge=1, le=1000)] = 1


class RebootWindow(Section, frozen=True, kw_only=True):
    """When healer may reboot the host: from `lower` to `upper`, HH:MM in local time."""

    lower: str = "01:00"
    upper: str = "05:00"


class SafeSwitch(Section, frozen=True, kw_only=True):
    """Judging deployments, and rolling back the bad ones.

    `condemned` answers the deployment of a condemned system, `keep` known-good ones stay rooted.
    """

    enable: bool = True
    probation_sec: PositiveSeconds = 300.0
    profile: str = "/nix/var/nix/profiles/system"
    timeout_sec: PositiveSeconds = 900.0
    condemned: Literal["warn", "zero-tolerance", "rollback"] = "zero-tolerance"
    max_rollbacks_per_day: Annotated[int, Meta(ge=1, le=1000)] = 3
    keep: Annotated[int, Meta(ge=1, le=1000)] = 5
    gates: tuple[Gate, ...] = ()
    lock_timeout_sec: PositiveSeconds = 900.0
    reboot: Literal["never", "at-once", "window"] = "never"
    reboot_window: RebootWindow = RebootWindow()
    boot_tries: Annotated[int, Meta(ge=1, le=100)] | None = 3


class Ignore(Section, frozen=True, kw_only=True):
    """Paths (a pattern of fnmatch(3)) that may differ from the declaration, and why."""

    path: str
    reason: str


class Drift(Section, frozen=True, kw_only=True):
    """Comparing the machine with its declaration."""

    enable: bool = True
    interval_sec: IntervalSeconds = 30.0
    ignore: tuple[Ignore, ...] = ()


class LedgerConfig(Section, frozen=True, kw_only=True):
    """The ledger's C2SP origin (a signed-note key name), and the credential that holds its key."""

    origin: str = "healer/localhost"
    key_credential: str | None = None


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    version: Literal[1]
    package: str | None = None
    state_dir: str = "/var/lib/healer"
    runtime_dir: str = "/run/healer"
    agents: dict[str, Agent] = {}
    groups: dict[str, Group] = {}
    escalation: Escalation = Escalation()
    safe_switch: SafeSwitch = SafeSwitch()
    drift: Drift = Drift()
    ledger: LedgerConfig = LedgerConfig()
