"""Ledger data in words that a person understands.

Whatever is in an entry, these functions do not fail: an entry of another version, or a field that
is missing, is told as far as it goes. Text that agents wrote never reaches a terminal as it is.
"""

import re
import signal
from collections.abc import Callable, Mapping
from typing import Any

Data = Mapping[str, Any]

# sysexits.h(3head) and systemd.exec(5), "Process Exit Codes": those that say why.
_EXIT_CODES = {
    "64": "EX_USAGE, wrong usage",
    "65": "EX_DATAERR, wrong input data",
    "66": "EX_NOINPUT, cannot open its input",
    "69": "EX_UNAVAILABLE, a service it needs is not available",
    "70": "EX_SOFTWARE, internal error",
    "71": "EX_OSERR, system error",
    "73": "EX_CANTCREAT, cannot create its output",
    "74": "EX_IOERR, input or output error",
    "75": "EX_TEMPFAIL, temporary failure",
    "77": "EX_NOPERM, permission denied",
    "78": "EX_CONFIG, configuration error",
    "126": "the shell found the command not executable",
    "127": "the shell did not find the command",
    "200": "systemd could not change to its working directory",
    "203": "systemd could not execute its command",
    "216": "systemd could not set its group",
    "217": "systemd could not set its user",
    "226": "systemd could not set up its namespaces",
    "228": "systemd could not apply its system call filter",
    "238": "systemd could not set up its state directory",
    "243": "systemd could not set up its credentials",
}

_STORE_PATH = re.compile(r"/nix/store/(?P<hash>[0-9a-z]{32})-(?P<name>[^/]+)")


def ending(data: Data) -> str:
    """Say how an invocation ended: the data of an ``agent.crash``, ``.exit`` or ``.stopped``."""
    status, how = text(data, "status"), text(data, "class") or text(data, "result")
    code = text(data, "code")
    raw = f"exit code {status}" if code == "exited" else f"SIG{status}" if status else "no process"
    special = {
        "oom": f"killed because memory ran out ({raw})",
        "watchdog": f"ended by systemd: it missed its watchdog deadline ({raw})",
        "timeout": f"ended by systemd: it took longer than allowed to start or stop ({raw})",
        "start-failed": "could not be started",
        "resources": "could not be started: systemd could not provide its resources",
        "protocol": f"did not do what its Type= promises systemd ({raw})",
        "health": f"killed by healer: {_health_check(data)} failed ({raw})",
        "core-dump": f"killed by {_signal(status)}, core dumped",
    }
    if how in special:
        return special[how]
    if code == "exited":
        meaning = _EXIT_CODES.get(status)
        return f"exited with code {status}" + (f" ({meaning})" if meaning else "")
    if code in {"killed", "dumped"}:
        return f"killed by {_signal(status)}" + (", core dumped" if code == "dumped" else "")
    return f"ended ({how})" if how else "ended, it is not known how"


def memory(data: Data) -> str | None:
    """Say what is known of the memory at the end of an invocation; None if nothing is."""
    known = data.get("memory")
    if not isinstance(known, Mapping):
        return None
    parts = [
        f"{name} {size(known[name])}"
        for name in ("peak", "current")
        if isinstance(known.get(name), int)
    ]
    if isinstance(known.get("oom_kill"), int):
        parts.append(f"{known['oom_kill']} OOM kills")
    if known.get("pressure"):
        parts.append(f"pressure {text(known, 'pressure')}")
    return ", ".join(parts) or None


def line(kind: str, data: Data) -> str:
    """Say in one line what an entry says."""
    teller = _LINES.get(kind)
    return teller(data) if teller else _generic(kind, data)


def duration(microseconds: int) -> str:
    """Return a length of time as a person says it: 850 µs, 12 ms, 3.4 s, 5 min 3 s, 2 h 5 min."""
    sign, value = ("-", -microseconds) if microseconds < 0 else ("", microseconds)
    if value < 1000:
        return f"{sign}{value} µs" if value else "0 ms"
    if value < 1_000_000:
        return f"{sign}{value // 1000} ms"
    seconds = value // 1_000_000
    if seconds < 60:
        return f"{sign}{value // 100_000 / 10:.1f} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    first = next(i for i, (length, _) in enumerate(units) if seconds >= length)
    (big, name), (small, less) = units[first], units[first + 1]
    rest = seconds % big // small
    return f"{sign}{seconds // big} {name}" + (f" {rest} {less}" if rest else "")


def size(count: int) -> str:
    """Return a number of bytes in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def toplevel(path: object) -> str:
    """Return a short name of a store path: its name and the first 8 letters of its hash."""
    if not isinstance(path, str):
        return "none"
    match = _STORE_PATH.fullmatch(path)
    return printable(f"{match['name']} ({match['hash'][:8]})" if match else path)


def text(data: Data, key: str) -> str:
    """Return a field as one line of printable text, empty where it is missing or null."""
    value = data.get(key)
    return "" if value is None else printable(str(value))


def printable(value: str) -> str:
    """Escape what would move the cursor or hide text on a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in value
    )


def milliseconds(data: Data, key: str) -> str:
    """Return a field that counts milliseconds as a length of time, empty if it is not known."""
    value = data.get(key)
    return duration(value * 1000) if isinstance(value, int) else ""


def _mapping(data: Data, key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _signal(status: str) -> str:
    try:
        described = signal.strsignal(signal.Signals[f"SIG{status}"])
    except KeyError:
        described = None
    return f"SIG{status}" + (f" ({described})" if described else "")


def _health_check(data: Data) -> str:
    check = text(data, "health_check")
    return f"its health check {check}" if check else "its health check"


def _started(data: Data) -> str:
    agents, before = data.get("agents"), data.get("previous_end")
    count = len(agents) if isinstance(agents, list) else 0
    says = f"healer {text(data, 'version')} has started; it watches {count} agents"
    if (safe_switch := text(data, "safe_switch")).startswith("off"):
        says += f"; SafeSwitch is {safe_switch}"
    if isinstance(before, Mapping):
        says += f"; its run before this one: {ending(before)}"
    return says


def _crash(data: Data) -> str:
    runtime = milliseconds(data, "runtime_ms")
    after = f" after {runtime}" if runtime else ""
    restart = {
        "will-restart": f"; systemd restarts it{_by_rule(data)}",
        "will-not-restart": f"; its policy is not to restart it{_by_rule(data)}",
    }.get(text(data, "restart"), "")
    return f"{text(data, 'unit')} crashed: {ending(data)}{after}{restart}"


def _by_rule(data: Data) -> str:
    """Say what a restart rule answers to a crash, beyond the plain restart."""
    pause = milliseconds(data, "restart_delay_ms")
    return {
        "delay": f" after {pause}, by a rule",
        "backoff": f" after a growing delay, now {pause}" if pause else " after a growing delay",
        "escalate": ", and a rule asks for healer's next step",
        "rollback": ", and a rule asks for a rollback",
    }.get(text(data, "answer"), "")


def _stopped(data: Data) -> str:
    why = {
        "group": f"together with {text(data, 'mate')}, of its group",
        "switch": "by a switch to another system",
        "healer": "by healer",
    }.get(text(data, "by"), "on request")
    return f"{text(data, 'unit')} was stopped {why}: {ending(data)}"


def _coredump(data: Data) -> str:
    program, frames = text(data, "executable") or "a program", data.get("stack")
    where = f", in {printable(str(frames[0]))}" if isinstance(frames, list) and frames else ""
    return f"{program} of {text(data, 'unit')} dumped core: {_signal(text(data, 'signal'))}{where}"


def _recovered(data: Data) -> str:
    ready, first = milliseconds(data, "ready_ms"), text(data, "first_status")
    unchecked = data.get("unchecked")
    names = printable(", ".join(map(str, unchecked))) if isinstance(unchecked, list) else ""
    return (
        f"{text(data, 'unit')} recovered: up for {milliseconds(data, 'stable_ms')} since"
        + (f"; its startup check {names} could not be made" if names else "")
        + (f"; ready after {ready}" if ready else "")
        + (f"; its first status: {first}" if first else "")
    )


def _restarted(data: Data) -> str:
    delay = milliseconds(data, "delay_ms")
    after = f", {delay} after the crash" if delay else ""
    process = f" as process {data['pid']}" if isinstance(data.get("pid"), int) else ""
    return f"{text(data, 'unit')} runs again{process}{after}"


def _activated(data: Data) -> str:
    generation = text(data, "generation")
    numbered = f", generation {generation}" if generation else ""
    name = text(data, "specialisation")
    special = f", specialisation {name}" if name else ""
    return (
        f"{toplevel(data.get('toplevel'))} became the running system "
        f"({text(data, 'kind')}{numbered}{special}); before it: "
        f"{toplevel(data.get('previous'))}{_changes(data.get('changes'))}"
    )


def _changes(data: object) -> str:
    """Say what a deployment changed, as far as that is known."""
    if not isinstance(data, Mapping):
        return ""
    agents, shared = data.get("agents"), data.get("shared")
    names = [str(name) for name in shared] if isinstance(shared, list) else []
    if isinstance(agents, Mapping):
        names += [str(name) for name, how in agents.items() if how != "same"]
    changed = ", ".join(printable(name) for name in names) or "no agent's unit"
    return f"; it changes {changed}"


def _intent(data: Data) -> str:
    target = toplevel(data.get("target"))
    words = {
        "rollback": "roll back to",
        "promote": "call known-good:",
        "hold": "hold back",
        "quarantine": "quarantine",
        "reboot": "reboot into",
        "give-up": "give up on",
        "release": "let go",
        "reset": "reset the restart counter of",
        "try": "run on trial",
        "confirm": "keep",
        "abandon": "end the trial and go back to",
    }
    action = words.get(text(data, "action"), text(data, "action"))
    who = text(data, "asked_by")
    if who:
        return f"{who} asked healer to {action} {target}"
    return f"healer decided to {action} {target}: {text(data, 'reason')}"


def _outcome(data: Data) -> str:
    ok = "succeeded" if data.get("ok") is True else "FAILED"
    detail = text(data, "detail")
    running = f"; running now: {toplevel(data['running'])}" if data.get("running") else ""
    return f"{text(data, 'action')} {ok}" + (f": {detail}" if detail else "") + running


def _loss(data: Data) -> str:
    count, unit = text(data, "count") or "an unknown number", text(data, "unit")
    lost = {"restarts": f"the ends of {count} runs of {unit}", "journal": "part of the journal"}
    what = text(data, "what")
    return f"{lost.get(what, what)} cannot be accounted for: {text(data, 'reason')}"


def texts(data: Data, key: str) -> list[str]:
    """Return a field that is a list of sentences, each printable; empty where it is not."""
    value = data.get(key)
    return [printable(str(each)) for each in value] if isinstance(value, list) else []


def _observed(data: Data) -> str:
    if data.get("agent") is None and data.get("gate") is None:
        return "the host"  # it was rolled back early in a boot
    return text(data, "agent") or f"the gate {text(data, 'gate')}"


def _bytes(data: Data, key: str) -> str:
    value = data.get(key)
    return size(value) if isinstance(value, int) else "?"


def _released(data: Data) -> str:
    asked_by = data.get("asked_by")
    what = f"the hold that {text(data, 'asked_by')} asked for" if asked_by else "its quarantine"
    why = {"boot": "the host was rebooted", "failure": "it never was"}
    return f"{text(data, 'unit')} is held back no more: " + why.get(
        text(data, "by"), f"{what} is over"
    )


def _generic(kind: str, data: Data) -> str:
    return " ".join([kind, *(f"{printable(key)}={text(data, key)}" for key in sorted(data))])


_LINES: dict[str, Callable[[Data], str]] = {
    "agent.crash": _crash,
    "agent.restarted": _restarted,
    "agent.recovered": _recovered,
    "agent.coredump": _coredump,
    "agent.not-restarted": lambda d: f"{text(d, 'unit')} stays down: {text(d, 'reason')}",
    "agent.undeclared": lambda d: (
        f"{text(d, 'agent')} is no agent any more: the configuration declares it no more; "
        + (
            f"{text(d, 'unit')} is the agent {text(d, 'other')} now"
            if d.get("other")
            else f"nobody watches {text(d, 'unit')}"
        )
    ),
    "agent.missing": lambda d: (
        f"{text(d, 'agent')} has no unit: systemd knows no {text(d, 'unit')}, and nothing starts "
        "it; is the agent's option `unit` right?"
    ),
    "agent.crash-loop": lambda d: (
        f"{text(d, 'agent')} is in a crash loop under {toplevel(d.get('toplevel'))}: "
        f"{text(d, 'reason')}"
    ),
    "agent.released": _released,
    "agent.gave-up": lambda d: (
        f"{text(d, 'agent')} is GIVEN UP: {text(d, 'reason')}; "
        + (
            f"it stays down until somebody says: healer agent {text(d, 'agent')} release"
            if d.get("stopped") is True
            else f"and it could not be stopped: {text(d, 'detail')}"
        )
    ),
    "agent.exit": lambda d: f"{text(d, 'unit')} finished: {ending(d)}",
    "agent.stopped": _stopped,
    "health.failed": lambda d: (
        f"health check {text(d, 'check')} of {text(d, 'agent')} failed {text(d, 'failures')} times "
        f"in a row: {text(d, 'detail')}"
    ),
    "deployment.activated": _activated,
    "deployment.probation": lambda d: (
        f"{toplevel(d.get('toplevel'))} is on probation for {milliseconds(d, 'left_ms')} more"
    ),
    "host.trouble": lambda d: (
        f"the host itself is in trouble: {'; '.join(texts(d, 'trouble'))}"
        if d.get("trouble")
        else "the host is out of its trouble"
    ),
    "gate.passed": lambda d: f"the gate {text(d, 'gate')} passes: {text(d, 'detail')}",
    "gate.held": lambda d: (
        f"the gate {text(d, 'gate')} has passed for {milliseconds(d, 'held_ms')}: "
        "if it fails from now on, that is not blamed on the deployment"
    ),
    "gate.failed": lambda d: f"the gate {text(d, 'gate')} fails: {text(d, 'detail')}",
    "deployment.known-good": lambda d: f"{toplevel(d.get('toplevel'))} is known-good",
    "deployment.condemned": lambda d: (
        f"{toplevel(d.get('toplevel'))} is condemned: {text(d, 'reason')}"
    ),
    "deployment.forgiven": lambda d: (
        f"{toplevel(d.get('toplevel'))} is forgiven, at the word of {text(d, 'asked_by')}"
    ),
    "deployment.recovered": lambda d: (
        f"the rollback helped: {_observed(d)} is well under {toplevel(d.get('toplevel'))}"
    ),
    "deployment.refuted": lambda d: (
        f"the rollback did not help, {toplevel(d.get('toplevel'))} was not to blame: "
        f"{text(d, 'reason')}"
    ),
    "healer.started": _started,
    "healer.stopped": lambda d: f"healer stops: {text(d, 'reason')}",
    "host.up": lambda d: f"the host is up, {milliseconds(d, 'after_ms')} after its boot",
    "boot.rolled-back": lambda d: (
        f"{toplevel(d.get('from'))} was rolled back in the boot, to {toplevel(d.get('target'))}: "
        f"{text(d, 'reason')}"
    ),
    "boot.excused": lambda d: (
        f"this boot is not counted against {toplevel(d.get('toplevel'))}: {text(d, 'reason')}"
    ),
    "deployment.closure": lambda d: (
        f"{toplevel(d.get('toplevel'))} has {text(d, 'added')} store paths more and "
        f"{text(d, 'removed')} fewer than {toplevel(d.get('previous'))}: "
        f"+{_bytes(d, 'bytes_added')}, -{_bytes(d, 'bytes_removed')}"
    ),
    "switch.stuck": lambda d: (
        f"a switch-to-configuration holds its lock for {milliseconds(d, 'held_ms')}: "
        f"{text(d, 'holder')}; nothing can be deployed until it ends"
    ),
    "rollback.staged": lambda d: text(d, "detail"),
    "safeswitch.verdict": lambda d: (
        f"verdict on {toplevel(d.get('toplevel'))}: {text(d, 'verdict')}; {text(d, 'reason')}"
    ),
    "health.passed": lambda d: f"{text(d, 'agent')} is up: check {text(d, 'check')} passes",
    "health.unready": lambda d: f"{text(d, 'agent')} is not ready: {text(d, 'detail')}",
    "action.intent": _intent,
    "action.outcome": _outcome,
    "loss": _loss,
    "restarts.counted": lambda d: (
        f"from here on the restarts of {len(_mapping(d, 'counts'))} agents are accounted for"
    ),
    "drift.found": lambda d: (
        f"{text(d, 'subject')} drifted: {text(d, 'observed')}; declared: {text(d, 'expected')}"
    ),
    "drift.resolved": lambda d: f"{text(d, 'subject')} is as declared again",
}
