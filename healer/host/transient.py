"""Starting a transient service over sd-bus, for root's one-shot helper.

That takes a third of what systemd-run(1) takes. Where the bus is gone, which may be what is to be
mended, systemd-run starts the same unit: it goes to systemd itself.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from healer.errors import HostUnavailableError, RefusedError
from healer.host import program, systemctl

if TYPE_CHECKING:
    from sdbus.sd_bus_internals import SdBus

_BUS = "org.freedesktop.DBus"
_SYSTEMD = "org.freedesktop.systemd1"
_EXISTS = f"{_SYSTEMD}.UnitExists"
_HANDED_ON = ("PATH", "LOCALE_ARCHIVE")


def prepare() -> None:
    """Connect to the bus ahead of a start: the most of what that costs. Nothing if it is away."""
    with suppress(HostUnavailableError):
        bus = _bus()
        # That is begun only, and the bus hangs up on whoever has not gone on with it after half a
        # minute (auth_timeout, dbus-daemon(1)). Any call does.
        _call(bus, _BUS, "/org/freedesktop/DBus", _BUS, "GetId")


def start(unit: str, description: str, command: Sequence[str], runtime_max_sec: float) -> bool:
    """Have systemd start a service that is forgotten when it is over; False if the name is taken.

    It has this process's PATH, and no more time than ``runtime_max_sec``. Whether the command could
    be executed shows later. Raises RefusedError when systemd does not start it.
    """
    try:
        return _by_bus(unit, description, command, runtime_max_sec)
    except HostUnavailableError:
        return _by_program(unit, description, command, runtime_max_sec)


def is_over(unit: str) -> bool:
    """Whether a unit neither runs nor is about to."""
    # A start that was asked for is a job at first, and the unit inactive until its turn comes.
    # While systemd executes itself anew it answers nobody.
    state = systemctl.show(unit, "ActiveState", "Job", check=False)
    return state.get("ActiveState") in {"inactive", "failed"} and state.get("Job", "0") in {"", "0"}


def _by_bus(unit: str, description: str, command: Sequence[str], runtime_max_sec: float) -> bool:
    bus = _bus()
    properties: list[tuple[str, tuple[str, Any]]] = [
        ("Description", ("s", description)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("Type", ("s", "exec")),
        ("RuntimeMaxUSec", ("t", round(runtime_max_sec * 1_000_000))),
        ("TimeoutStopUSec", ("t", 30_000_000)),
        ("Environment", ("as", [f"{name}={value}" for name, value in _environment().items()])),
        ("ExecStartEx", ("a(sasas)", [(command[0], list(command), ["no-env-expand"])])),
    ]
    manager = (_SYSTEMD, "/org/freedesktop/systemd1", f"{_SYSTEMD}.Manager")
    data: tuple[Any, ...] = ("ssa(sv)a(sa(sv))", unit, "fail", properties, [])
    refused = _call(bus, *manager, "StartTransientUnit", data=data)
    if refused not in {None, _EXISTS}:
        raise HostUnavailableError(f"systemd refused {unit}: {refused}")
    return refused is None


def _call(bus: "SdBus", *method: str, data: tuple[Any, ...] = ()) -> str | None:
    """Call a method; return the name of its own error where it is refused with one."""
    from sdbus import SdBusBaseError, SdBusUnmappedMessageError  # noqa: PLC0415 - see _bus

    try:
        message = bus.new_method_call_message(*method)
        if data:
            message.append_data(*data)
        bus.call(message)
    except SdBusUnmappedMessageError as error:
        return str(error.args[0])
    except (SdBusBaseError, OSError) as error:
        raise HostUnavailableError(f"the system bus does not answer: {error}") from error
    return None


def _by_program(
    unit: str, description: str, command: Sequence[str], runtime_max_sec: float
) -> bool:
    try:
        program.run(
            "systemd-run",
            f"--unit={unit}",
            f"--description={description}",
            "--collect",
            "--quiet",
            "--no-ask-password",
            "--service-type=exec",
            "--expand-environment=no",
            f"--property=RuntimeMaxSec={runtime_max_sec:g}",
            "--property=TimeoutStopSec=30",
            *(f"--setenv={name}={value}" for name, value in _environment().items()),
            *command,
        )
    except RefusedError as error:
        if "already" in str(error):
            return False
        raise
    return True


@lru_cache(maxsize=1)
def _bus() -> "SdBus":
    # Most of the helper's requests need none of this.
    from sdbus import SdBusBaseError, sd_bus_open_system  # noqa: PLC0415 - as above

    try:
        return sd_bus_open_system()
    except (SdBusBaseError, OSError) as error:
        raise HostUnavailableError(f"the system bus does not answer: {error}") from error


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
