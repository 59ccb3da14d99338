"""The status file: what the daemon says of itself and its agents, and `healer status` reads.

Times ending in ``_us`` are microseconds: ``updated_boottime_us`` on CLOCK_BOOTTIME, all others on
CLOCK_REALTIME.
"""

from pathlib import Path
from typing import Literal

import msgspec

from healer.errors import HealerError
from healer.files import write_atomically

NAME = "status.json"


class LastCrash(msgspec.Struct, frozen=True, kw_only=True, rename={"crash_class": "class"}):
    """An agent's last crash: its class, its ``EXIT_STATUS``, and the same in words."""

    time_us: int
    crash_class: str
    words: str
    status: str


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One agent; ``held`` says why healer holds it back, ``since_us`` since when it is so.

    ``restart_due_us`` says when PID 1's ``restart_timer`` starts it, for which it waits.
    ``quarantines`` counts those since it last recovered; ``gave_up`` says why it was given up.
    """

    unit: str
    active_state: str
    sub_state: str
    pid: int | None
    invocation: str | None
    since_us: int | None
    n_restarts: int
    crashes: int
    last_crash: LastCrash | None
    health: dict[str, Literal["ok", "failing", "unknown"]]
    incident: str | None
    held: str | None
    quarantines: int = 0
    gave_up: str | None = None
    restart_due_us: int | None = None
    restart_timer: str | None = None


class GateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a gate stands, and for one that fails, what was seen."""

    state: Literal["passed", "failed", "unknown"]
    detail: str | None = None


class DeploymentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The running system; ``safe_switch`` is ``on`` or ``off: reason``.

    ``gates`` says how each stands, or stood when its probation ended, ``waiting_for`` what keeps
    it from being known-good, or what a rollback waits for; ``known_goods`` are in the order in
    which they became so. ``trial`` says in words that the system is on trial.

    Which system is where are separate facts: ``toplevel`` runs, ``booted`` was booted, ``profile``
    is the profile's (``generation`` its number), ``boot_default`` boots next, where that can be
    known, and ``specialisation`` names the one that runs, of the system ``base``. ``lasts`` is
    false where a rollback could not have the next boot start what runs, ``switch_stuck`` says that
    a switch is under way for longer than safeSwitch.lockTimeoutSec.
    """

    toplevel: str | None
    generation: int | None
    state: Literal["known-good", "provisional", "unknown"]
    known_good: str | None
    probation_left_s: int | None
    switching: bool
    safe_switch: str
    gates: dict[str, GateStatus] = {}
    waiting_for: str | None = None
    known_goods: tuple[str, ...] = ()
    condemned: tuple[str, ...] = ()
    trial: str | None = None
    booted: str | None = None
    profile: str | None = None
    boot_default: str | None = None
    specialisation: str | None = None
    base: str | None = None
    lasts: bool = True
    switch_stuck: bool = False


class LedgerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger: how many entries, the last one's hash, and whether it can be written."""

    size: int
    head: str | None
    ok: bool
    reason: str | None
    spooled: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file; ``drift_off`` says what is not compared and why."""

    updated_us: int
    updated_boottime_us: int
    pid: int
    version: str
    config_sha256: str
    agents: dict[str, AgentStatus]
    deployment: DeploymentStatus
    drift: tuple[dict[str, str], ...]
    drift_off: str | None
    ledger: LedgerStatus


def write(path: Path, status: Status) -> None:
    """Replace the file atomically, readable by everybody; OSError if that fails.

    It is not synchronised to disk: it lies in /run, and means nothing after a reboot.
    """
    write_atomically(path, msgspec.json.encode(status), 0o644, durable=False)


def read(path: Path) -> Status | None:
    """Return what the file says, or None where there is none.

    HealerError when it cannot be read, or is not what this healer writes.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Status)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HealerError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise HealerError(
            f"{path} is not a status that this healer understands ({error}); the daemon may be of "
            "another version: restart healer.service"
        ) from error
