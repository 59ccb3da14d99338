"""How an invocation ended, in one word, and whether systemd will start it again.

Pure. Sources: systemd.exec(5) ``$SERVICE_RESULT``, systemd.service(5) ``Restart=``.
"""

from healer.config import Restart
from healer.events import Ended

# systemd counts these as a clean end unless SuccessExitStatus= says more (systemd.service(5)).
_CLEAN_SIGNALS = frozenset({"HUP", "INT", "TERM", "PIPE"})

_CLASS_OF_RESULT = {
    "exit-code": "exit",
    "signal": "signal",
    "core-dump": "core-dump",
    "oom-kill": "oom",
    "watchdog": "watchdog",
    "timeout": "timeout",
    "protocol": "protocol",
    "resources": "resources",
    "start-limit-hit": "start-failed",
}


def is_crash(ended: Ended, *, stop_requested: bool, health_check: str | None) -> bool:
    """Whether this end is a crash: it failed, or a health check killed it, and nobody asked."""
    if stop_requested or ended.result == "exec-condition":
        return False
    return ended.result != "success" or health_check is not None


def crash_class(ended: Ended, health_check: str | None) -> str:
    """Return the class of a crash.

    A SIGKILL is an OOM kill only when the cgroup counted one: systemd's own result can come late
    (systemd#29109 and kin), and a person's ``kill -9`` must not be called out of memory.
    """
    if health_check is not None:
        return "health"
    killed = ended.code == "killed" and ended.status == "KILL"
    if killed and ended.memory is not None and ended.memory.oom_kill:
        return "oom"
    if ended.result == "exit-code" and ended.code == "":
        return "start-failed"
    return _CLASS_OF_RESULT.get(ended.result, "exit")


def will_restart(restart: Restart, ended: Ended) -> bool:
    """Whether systemd restarts after this end by the policy that is rendered into the unit."""
    if ended.status in _statuses(restart, "stop"):
        return False
    if ended.status in _statuses(restart, "restart"):
        return True
    if restart.policy == "never" or (
        restart.policy == "conditional" and restart.otherwise == "stop"
    ):
        return False
    return restart.on == "always" or not _clean(ended)


def _clean(ended: Ended) -> bool:
    if ended.result != "success":
        return False
    return ended.status in {"", "0"} or ended.status in _CLEAN_SIGNALS


def _statuses(restart: Restart, action: str) -> frozenset[str]:
    if restart.policy != "conditional":
        return frozenset()
    return frozenset(
        status
        for rule in restart.rules
        if rule.action == action
        for status in (
            *map(str, rule.exit_codes),
            *(name.removeprefix("SIG") for name in rule.signals),
        )
    )
