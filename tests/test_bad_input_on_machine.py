"""What can be wrong with the host: one clear message each, a documented code, nothing lost."""

import os

from tests.conftest import Boot
from tests.machine.agents import (
    agent,
    assert_intact,
    entries,
    kill_and_wait,
    main_pid,
    system,
    wait_for_entries,
    wait_for_entry,
)

CONFIG = "/etc/healer/config.yaml"


def journal_says(text: str) -> str:
    return f"journalctl -u healer | grep -F -- {text!r}"


def test_configuration_and_reload(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("healer.service")
    pid = main_pid(machine, "healer.service")
    good = machine.succeed(f"cat {CONFIG}")
    # A bad configuration is refused, and the old one stays in force.
    machine.succeed(f"cp --remove-destination $(readlink -f {CONFIG}) {CONFIG}")
    machine.write_file(CONFIG, good.replace('"stableSec":2', '"stableSec":"soon"'))
    machine.succeed("systemctl reload healer")
    refused = wait_for_entry(machine, "config.refused")
    assert any("agents.worker.stableSec" in line for line in refused["data"]["errors"])
    kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.recovered", agent="worker")
    # A good one is taken over without a restart.
    machine.write_file(CONFIG, good.replace('"stableSec":2', '"stableSec":3'))
    machine.succeed("systemctl reload healer")
    wait_for_entry(machine, "config.loaded")
    assert main_pid(machine, "healer.service") == pid

    for text, word in (("", "empty"), ("a: [", "line"), ("x: 1", "unknown"), ("&a [*a]", "anchor")):
        machine.write_file("/tmp/bad.yaml", text)
        code, out = machine.execute("healer config check /tmp/bad.yaml 2>&1")
        assert code == 1, text
        assert "Traceback" not in out
        assert out.strip(), word
    code, out = machine.execute("healer daemon --config /no/such/file 2>&1")
    assert code == os.EX_CONFIG
    assert "/no/such/file" in out


def test_a_second_daemon_leaves(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("healer.service")
    code, out = machine.execute(f"healer daemon --config {CONFIG} 2>&1")
    assert code == os.EX_TEMPFAIL
    assert "another healer" in out
    assert_intact(machine)


def test_the_bus_is_not_there_at_start(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    machine.succeed("systemctl stop healer; systemctl stop dbus.socket dbus.service")
    machine.succeed("systemctl start healer")
    machine.wait_until_succeeds(journal_says("the system bus does not answer"))
    pid = machine.succeed("pgrep -f agents/worker.py").strip()
    machine.succeed(f"kill -KILL {pid}")
    # The stamp tells of the crash without any bus.
    wait_for_entry(machine, "agent.crash", agent="worker")
    machine.succeed("systemctl start dbus.socket dbus.service")
    wait_for_entry(machine, "agent.recovered", agent="worker")
    assert len(entries(machine, "agent.crash")) == 1


def test_journald_is_not_there_at_start(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("worker.service")
    journald = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service"
    machine.succeed(f"systemctl stop healer; systemctl stop {journald}")
    machine.succeed("systemctl start healer")
    kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.recovered", agent="worker")
    machine.succeed(f"systemctl start {journald}")
    kill_and_wait(machine, "worker.service")
    wait_for_entries(machine, 2, "agent.crash")
    assert_intact(machine)


def test_the_key_comes_from_a_credential(container: Boot) -> None:
    machine = container()
    machine.succeed(
        "openssl genpkey -algorithm ed25519 -out /etc/credstore/ledger-key",
        "chmod 0400 /etc/credstore/ledger-key",
        "openssl pkey -in /etc/credstore/ledger-key -pubout -out /root/ledger.pub",
    )
    ledger = {"ledger": {"keyCredential": "ledger-key"}}
    machine.deploy(system({"worker": agent()}, healer=ledger))
    machine.wait_for_unit("healer.service")
    machine.succeed("healer ledger verify --public-key /root/ledger.pub")
    machine.fail("ls /var/lib/healer/ledger/ledger.key")
    # Without it healer says what is missing, and agents run all the same.
    machine.succeed("rm /etc/credstore/ledger-key; systemctl restart healer || true")
    machine.wait_until_succeeds(journal_says("ledger-key"))
    kill_and_wait(machine, "worker.service")


def test_no_nix_and_no_such_unit(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    machine.wait_for_unit("healer.service")
    machine.succeed(
        f'sed \'s/"worker":{{/"ghost":{{"unit":"ghost.service"}},&/\' {CONFIG} > /run/c.yaml',
        "healer config check /run/c.yaml",
        "mkdir -p /run/systemd/system/healer.service.d",
        "printf '[Service]\\nEnvironment=PATH=/nowhere\\nExecStart=\\nExecStart=%s daemon "
        "--config /run/c.yaml\\n' $(readlink -f $(command -v healer)) "
        "> /run/systemd/system/healer.service.d/no-nix.conf",
        "systemctl daemon-reload; systemctl restart healer",
    )
    machine.wait_until_succeeds(journal_says("systemd knows no ghost.service"))
    started = wait_for_entry(machine, "healer.started")
    assert started["data"]["safe_switch"].startswith("off: nix-env")
    machine.succeed(journal_says("SafeSwitch is off: nix-env is not on the PATH"))
    kill_and_wait(machine, "worker.service")
    wait_for_entry(machine, "agent.crash", agent="worker")
    assert "ghost.service" in machine.execute("healer status")[1]


# Says more at a time than a line can hold, by the protocol of journald's own, and dies.
LOUD = """\
import array, fcntl, os, signal, socket

journald = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journald.connect("/run/systemd/journal/socket")
for _ in range(7):
    noise = os.urandom(6_000_000).replace(b'\\n', b'')
    memory = os.memfd_create("line", os.MFD_ALLOW_SEALING)
    os.write(memory, b"MESSAGE=" + noise + b"\\n")
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 15)
    journald.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_an_agent_shouts_costs_healer_nothing(container: Boot) -> None:
    loud = agent("loud", stateDirectory="loud", restart={"policy": "exponential", "delaySec": 60})
    log = {"name": "log", "type": "log", "pattern": "^FATAL", "intervalSec": 0.5}
    machine = container(system=system({"worker": agent()}, etc={"agents/loud.py": LOUD}))
    machine.wait_until_succeeds("healer status")
    pid = main_pid(machine, "healer.service")
    peak = f"sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/{pid}/status"
    before = int(machine.succeed(peak))
    agents = {"worker": agent(), "loud": loud | {"health": [log]}}
    machine.deploy(system(agents, etc={"agents/loud.py": LOUD}), status={0, 4})
    crash = wait_for_entry(machine, "agent.crash", agent="loud")
    assert len(crash["data"]["journal"]) >= 5
    assert main_pid(machine, "healer.service") == pid
    assert int(machine.succeed(peak)) - before < 100_000
    assert_intact(machine)


def test_ledger_trouble(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}))
    wait_for_entry(machine, "deployment.known-good")
    ledger = "/var/lib/healer/ledger"
    machine.succeed("systemctl stop healer")

    # A torn tail is set aside and said so.
    machine.succeed(f"truncate -s -40 $(ls {ledger}/*.jsonl | tail -n 1)")
    machine.succeed("systemctl start healer")
    wait_for_entry(machine, "ledger.recovered")
    assert_intact(machine)

    # A foreign key, and a byte flipped in the middle: refused, and nothing is changed.
    machine.succeed("systemctl stop healer", f"cp -a {ledger} /root/copy")
    machine.succeed(f"openssl genpkey -algorithm ed25519 -out {ledger}/ledger.key")
    machine.succeed(f"chown healer {ledger}/ledger.key; chmod 400 {ledger}/ledger.key")
    code, out = machine.execute(f"healer daemon --config {CONFIG} 2>&1")
    assert (code, "key" in out) == (os.EX_DATAERR, True), out
    machine.succeed(f"rm -r {ledger}; cp -a /root/copy {ledger}")

    # A full disk: agents go on, the daemon says so, and writes all of it when there is room.
    machine.succeed(
        f"mount -t tmpfs -o size=200k,uid=$(id -u healer),mode=0750 tmpfs {ledger}",
        f"cp -a /root/copy/. {ledger}",
        "systemctl start healer",
    )
    machine.wait_for_unit("healer.service")
    machine.sleep(2)
    machine.execute(f"dd if=/dev/zero of={ledger}/filler bs=1k 2>/dev/null")
    # The last page of the file has room for an entry or two.
    for _ in range(6):
        kill_and_wait(machine, "worker.service")
    machine.wait_until_succeeds("(healer status || true) | grep -i 'no space'")
    machine.succeed(journal_says("entries wait in memory"))
    machine.succeed(f"rm {ledger}/filler")
    wait_for_entries(machine, 6, "agent.crash")
    assert_intact(machine)

    # A ledger that is begun anew has a key of its own, and root obeys it only once it is told.
    machine.succeed(f"systemctl stop healer; umount {ledger}; mv {ledger} {ledger}.damaged")
    machine.succeed("systemctl start healer")
    machine.wait_for_unit("healer.service")
    started = wait_for_entry(machine, "healer.started")["data"]["safe_switch"]
    assert started.startswith("off: root's helper obeys the ledger of another key")
    machine.fail("healer agent worker restart")
    machine.succeed("rm -f /var/lib/healer-helper/ledger.pub; systemctl restart healer")
    machine.wait_for_unit("healer.service")
    machine.succeed("healer agent worker restart")
    assert wait_for_entry(machine, "healer.started")["data"]["safe_switch"] == "on"
