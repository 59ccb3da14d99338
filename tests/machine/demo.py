"""``make demo``: healer's whole job, once, on a machine that boots here and now.

Everything shown is asked of the machine; if anything did not happen, the exit code is not 0.
"""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.machine.agents import agent, entries, main_pid, system, wait_for_entry
from tests.machine.container import ContainerMachine
from tests.machine.local import LocalMachine
from tests.machine.outcome import MachineError, RequestedAssertionError
from tests.machine.support import why_no_container, why_no_vm
from tests.machine.vm import VirtualMachine

STOP_ON_3 = {"policy": "conditional", "rules": [{"exitCodes": [3], "action": "stop"}]}
HEALTH = [{"name": "alive", "type": "command", "command": ["/usr/bin/true"], "startGraceSec": 1}]


def generation(program: str, label: str) -> dict[str, Any]:
    """Declare a system with two agents; `program` is what the first one runs."""
    agents = {
        "indexer": agent(program, stateDirectory="indexer", health=HEALTH),
        "reporter": agent(stateDirectory="reporter", restart=STOP_ON_3),
    }
    return system(agents, label=label, etc={"motd": f"generation {label}\n"})


class Demo:
    """The steps, what each measured, and a machine to take them on."""

    def __init__(self, machine: LocalMachine) -> None:
        self.machine = machine
        self.measured: list[tuple[str, str]] = []
        self.steps = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step, keep the harness's own log for a failure, and say how long it took."""
        self.steps += 1
        print(f"\n[{self.steps}] {title}", flush=True)
        began, log = time.monotonic(), io.StringIO()
        try:
            with contextlib.redirect_stderr(log):
                yield
        except BaseException:
            sys.stderr.write(log.getvalue())
            raise
        print(f"    ({time.monotonic() - began:.1f} s)", flush=True)

    def say(self, text: str) -> None:
        """Print one line of a step."""
        print(f"    {text}", flush=True)

    def show(self, command: str) -> None:
        """Run a command in the machine and print what a person would see."""
        print(f"\n    # {command}")
        for line in self.machine.execute(command)[1].splitlines():
            print(f"    {line}")

    def measure(self, name: str, milliseconds: float) -> None:
        """Keep a figure for the summary."""
        self.measured.append((name, f"{milliseconds:,.0f} ms"))

    def run(self) -> None:
        """Take all the steps."""
        self.start()
        good = self.known_good()
        self.kill()
        self.exit_code()
        good = self.good_deployment(good)
        incident = self.bad_deployment(good)
        self.drift()
        self.evidence(incident)

    def start(self) -> None:
        with self.step("Boot a machine and deploy two agents that keep state"):
            began = time.monotonic()
            self.machine.start()
            self.machine.wait_for_unit("multi-user.target")
            self.measure("boot", (time.monotonic() - began) * 1000)
            self.machine.deploy(generation("worker", "1"))
            for unit in ("healer", "indexer", "reporter"):
                self.machine.wait_for_unit(f"{unit}.service")
            self.say("healer.service, indexer.service and reporter.service run")

    def known_good(self) -> str:
        with self.step("Stand the probation: the first system that holds is known-good"):
            toplevel = self.machine.current_system()
            wait_for_entry(self.machine, "deployment.known-good", toplevel=toplevel)
            self.say(f"{toplevel} is known-good")
        return toplevel

    def kill(self) -> None:
        with self.step("Kill an agent (SIGKILL)"):
            state = "/var/lib/indexer/counter"
            before = int(self.machine.succeed(f"cat {state}"))
            pid = main_pid(self.machine, "indexer.service")
            self.machine.succeed(f"kill -KILL {pid}")
            crash = wait_for_entry(self.machine, "agent.crash", agent="indexer")
            again = wait_for_entry(self.machine, "agent.restarted", agent="indexer")
            stop_ms = crash["data"]["stop_uptime_ms"]
            self.measure("SIGKILL to running again", again["data"]["delay_ms"])
            self.measure("SIGKILL to the ledger", crash["boottime_us"] / 1000 - stop_ms)
            wait_for_entry(self.machine, "agent.recovered", agent="indexer")
            after = int(self.machine.succeed(f"cat {state}"))
            self.expect(after > before, f"it went on at job {before}, and is at {after} now")

    def exit_code(self) -> None:
        with self.step("Let an agent exit with a code that must not restart"):
            self.machine.succeed("echo 3 > /var/lib/reporter/orders")
            end = wait_for_entry(self.machine, "agent.not-restarted", agent="reporter")
            state = self.machine.get_unit_property("reporter.service", "ActiveState")
            self.expect(state == "failed", f"reporter stays {state}: {end['data']['reason']}")

    def good_deployment(self, before: str) -> str:
        with self.step("Deploy a good generation"):
            toplevel = self.machine.deploy(generation("worker", "2"))
            self.expect(toplevel != before, f"{toplevel} is active")
            wait_for_entry(self.machine, "deployment.known-good", toplevel=toplevel)
            self.say("it stood its probation and is the known-good one now")
        return toplevel

    def bad_deployment(self, good: str) -> str:
        with self.step("Deploy a bad generation: its indexer crashes at once"):
            bad = self.machine.deploy(generation("broken", "3"), status={0, 4})
            wait_for_entry(self.machine, "deployment.condemned", toplevel=bad)
            self.expect(self.machine.current_system() == good, f"{good} is active again")
            wait_for_entry(self.machine, "agent.recovered", agent="indexer")
            spent = wait_for_entry(self.machine, "agent.crash-loop", toplevel=bad)
            outcome = wait_for_entry(self.machine, "action.outcome", action="rollback")
            took_us = outcome["boottime_us"] - spent["boottime_us"]
            self.measure("budget spent to rolled back and verified", took_us / 1000)
            self.measure("  of that, the switch itself", outcome["data"]["steps"]["switch"])
            intents = [e["data"]["action"] for e in entries(self.machine, "action.intent")]
            self.expect(intents.count("rollback") == 1, "rolled back once")
        return str(outcome["incident"])

    def drift(self) -> None:
        with self.step("Tamper with the machine: replace a declared file, add a drop-in"):
            drop_in = "/run/systemd/system/indexer.service.d/sneaky.conf"
            began = time.monotonic()
            self.machine.write_file(drop_in, "[Service]\nNice=19\n")
            self.machine.succeed("rm /etc/motd; echo pwned > /etc/motd")
            for subject in (drop_in, "/etc/motd"):
                found = wait_for_entry(self.machine, "drift.found", subject=subject)
                self.say(f"{found['data']['class']}: {subject}: {found['data']['observed']}")
            self.measure("both changes to both findings", (time.monotonic() - began) * 1000)

    def evidence(self, incident: str) -> None:
        with self.step("Read the incident, verify the ledger, and try to change it"):
            self.show("healer status")
            self.show(f"healer incident {incident}")
            self.show("healer ledger verify")
            self.machine.succeed("healer ledger verify", "cp -r /var/lib/healer/ledger /tmp/copy")
            where = self.machine.succeed(
                "f=$(ls /tmp/copy/*.jsonl | head -n 1);"
                "at=$(grep -abo -m 1 agent.crash $f | cut -d: -f1);"
                "printf C | dd of=$f bs=1 seek=$at conv=notrunc 2>/dev/null; echo $f byte $at"
            )
            self.say(f"one byte changed in a copy: {where.strip()}")
            code, out = self.machine.execute("healer ledger verify /tmp/copy")
            self.expect(code == 2, f"the verifier: {out.splitlines()[0]}")

    def expect(self, happened: bool, what: str) -> None:
        """Say what happened, or stop because it did not."""
        if not happened:
            raise MachineError(f"did not happen: {what}")
        self.say(what)


def choose() -> tuple[Callable[[str, Path], LocalMachine], str] | None:
    """Return a kind of machine that can be booted here; tell what each needs otherwise."""
    why = why_no_container()
    if why is None:
        return ContainerMachine, "a container"
    print(f"no container can be booted here: {why}\ntrying a virtual machine instead", flush=True)
    why = why_no_vm()
    if why is None:
        return VirtualMachine, "a virtual machine (slower)"
    print(f"no virtual machine can be booted here either: {why}")
    return None


def main() -> int:
    """Run the demonstration; 0 only if everything happened."""
    began = time.monotonic()
    chosen = choose()
    if chosen is None:
        return 1
    kind, name = chosen
    print(f"healer's main job on {name}: real systemd, real Nix generations", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        machine = kind("demo", Path(directory))
        demo = Demo(machine)
        try:
            demo.run()
        except (MachineError, RequestedAssertionError) as error:
            print(f"\nFAILED in step [{demo.steps}]: {error}")
            print(f"\nThe machine's journal:\n{machine.post_mortem()}")
            return 1
        finally:
            machine.release()
    print("\nMeasured:")
    for what, figure in demo.measured:
        print(f"  {what:<42} {figure:>10}")
    print(f"\nEverything happened, in {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
