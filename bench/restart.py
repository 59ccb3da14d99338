"""From SIGKILL of the main process to the next one running its program, by supervisor.

All run in one machine at once and are killed in turn, in a random order each round. The program is
the same for all: a shell that writes its name and PID into a FIFO with its own builtin. Whoever
measures sleeps until that write wakes it, so unlike a poll of /proc or cgroup.procs it takes no CPU
from what is measured, and what it sees is the new program at work, not only a PID.
"""

from typing import Any

from bench.machine import GUEST, RUN, agent, announcer, bare, machine, system
from bench.report import Report, Target

BARE = "systemd RestartSec=0"
HEALER = "healer"
PEERS = ("supervisord", "runit", "s6", "monit")
_START = "+/bin/sh /srv/stamps/stamp-start.sh %n"
_STOP = "+/bin/sh /srv/stamps/stamp-stop.sh %n 60000 /usr/bin"
_PROGRAM = announcer("")[:-1]


def run(rounds: int = 30) -> Report:
    report = Report("restart")
    services, etc = _peer_services()
    names = {
        "bare": BARE,
        "supervised": HEALER,
        "supervised-dynamic": "healer, DynamicUser",
        "supervised-untold": "healer, lastCrash = false",
        "bare-dynamic": "systemd RestartSec=0, DynamicUser",
        "bare-100ms": "systemd RestartSec=100ms",
        "bare-start": "systemd + start stamp",
        "bare-stop": "systemd + stop stamp",
        "bare-empty": "systemd + an empty stop command",
        **{name: name for name in PEERS},
    }
    services |= {
        "bare": bare("bare"),
        "bare-dynamic": bare("bare-dynamic", DynamicUser=True),
        "bare-100ms": bare("bare-100ms", RestartSec="100ms"),
        "bare-start": bare("bare-start", ExecStartPost=_START),
        "bare-stop": bare("bare-stop", ExecStopPost=_STOP),
        "bare-empty": bare("bare-empty", ExecStopPost="+/bin/true"),
    }
    agents = {
        "supervised": agent("supervised"),
        "supervised-dynamic": agent("supervised-dynamic", user=None),
        "supervised-untold": agent("supervised-untold", lastCrash=False),
    }
    with machine("restart", with_peers=True) as box:
        # The stamps as the unit has them, for the units that have only one of them.
        box.succeed("mkdir -p /srv/stamps && cp /srv/checkout/nix/stamp-*.sh /srv/stamps/")
        box.deploy(system(agents, services, etc=etc))
        box.wait_for_healer()
        times: dict[str, list[int]] = box.measure(
            "restart", names=list(names), program=_PROGRAM, rounds=rounds, seed=rounds
        )
    report.add_times(BARE, times["bare"])
    for name, title in names.items():
        if title != BARE:
            report.add_times(title, times[name], BARE)
    report.add_times("floor: fork and exec alone", times["floor"], BARE)
    _judge(report)
    return report


def _judge(report: Report) -> None:
    base, ours = report.value(BARE), report.value(HEALER)
    start = report.value("systemd + start stamp") - base
    stop = report.value("systemd + stop stamp") - base
    empty = report.value("systemd + an empty stop command") - base
    adds = (
        f"on the restart path the start stamp adds {start:.1f} ms and the stop stamp {stop:.1f} ms;"
        f" an empty stop command adds {empty:.1f} ms, which is systemd starting a process"
    )
    report.notes.append(adds)
    report.notes.append("no program was killed younger than 1.2 s, for s6 and runit delay those")
    report.targets.append(Target(f"{HEALER} by {BARE}", ours / base, 2, "times", adds))
    for peer in (*PEERS, "systemd RestartSec=100ms"):
        report.targets.append(Target(f"{HEALER} ahead of {peer}", ours, report.value(peer), "ms"))


def _peer_services() -> tuple[dict[str, Any], dict[str, str]]:
    """Declare the peers, each set to restart at once, or as often as it looks."""
    command = {name: " ".join(announcer(name)) for name in PEERS}
    etc = {
        "bench/supervisord.conf": (
            "[supervisord]\nnodaemon=true\nuser=root\nlogfile=/dev/null\nlogfile_maxbytes=0\n"
            f"pidfile={RUN}/supervisord.pid\n"
            f"[program:p]\ncommand={command['supervisord']}\nautorestart=true\n"
        ),
        "bench/run-runit": f"#!/bin/sh\nexec {command['runit']}\n",
        "bench/run-s6": f"#!/bin/sh\nexec {command['s6']}\n",
        "bench/monitrc": (
            "set daemon 1\n"
            f"set pidfile {RUN}/monit-own.pid\nset idfile {RUN}/monit.id\n"
            f"set statefile {RUN}/monit.state\n"
            f"check process p with pidfile {RUN}/monit.pid\n"
            f'  start program = "/bin/sh {GUEST}/bench/guest/start-for-monit.sh"\n'
        ),
    }
    start = {
        "supervisord": ["/usr/bin/supervisord -n -c /etc/bench/supervisord.conf"],
        "runit": _service_directory("runit", "/usr/bin/runsv"),
        "s6": _service_directory("s6", "/usr/bin/s6-supervise"),
        "monit": [
            f"/usr/bin/install -m 0600 /etc/bench/monitrc {RUN}/monitrc",
            f"/usr/bin/monit -I -c {RUN}/monitrc",
        ],
    }
    services = {
        f"peer-{name}": {
            "wantedBy": ["multi-user.target"],
            "serviceConfig": {"ExecStartPre": before, "ExecStart": main, "Restart": "always"},
        }
        for name, (*before, main) in start.items()
    }
    return services, etc


def _service_directory(name: str, program: str) -> list[str]:
    directory = f"{RUN}/{name}"
    install = f"/usr/bin/install -D -m 0755 /etc/bench/run-{name} {directory}/run"
    return [install, f"{program} {directory}"]
