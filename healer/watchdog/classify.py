"""How an invocation ended, in one word. nix/stamp-stop.sh says the same, for the rules under PID 1.

Pure. Source: systemd.exec(5) ``$SERVICE_RESULT``.
"""

from healer.events import Ended

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
