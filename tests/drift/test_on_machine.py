"""Drift on a real machine: what was not declared is found within seconds, and seen to go."""

from tests.conftest import Boot
from tests.machine.agents import agent, entries, system, wait_for_entry


def test_drop_in_unit_file_and_replaced_link(container: Boot) -> None:
    machine = container(system=system({"worker": agent()}, etc={"motd-of-the-day": "welcome\n"}))
    machine.wait_for_unit("worker.service")
    wait_for_entry(machine, "deployment.known-good")
    assert entries(machine, "drift.found") == []

    drop_in = "/run/systemd/system/worker.service.d/90-nice.conf"
    unit = "/run/systemd/system/backdoor.service"
    link = "/etc/motd-of-the-day"
    machine.write_file(drop_in, "[Service]\nNice=5\n")
    machine.write_file(unit, "[Service]\nExecStart=/bin/sleep infinity\n")
    machine.succeed(f"rm {link}; echo owned > {link}")
    for kind, subject in (("drop-in", drop_in), ("unit", unit), ("etc", link)):
        found = wait_for_entry(machine, "drift.found", subject=subject)
        assert found["data"]["class"] == kind
        assert found["incident"].startswith("drift-")
    machine.sleep(5)
    assert len(entries(machine, "drift.found")) == 3, "each is told once"
    machine.wait_until_succeeds("(healer status --json || true) | grep '\"drift\"'")

    machine.succeed(f"rm -r {drop_in} {unit}; ln -sfn /etc/static/motd-of-the-day {link}")
    for subject in (drop_in, unit, link):
        wait_for_entry(machine, "drift.resolved", subject=subject)
    assert machine.execute("healer status")[0] == 0

    # A switch that changes the declaration is no drift.
    machine.deploy(system({"worker": agent()}, etc={"motd-of-the-day": "hello\n"}))
    machine.sleep(5)
    assert len(entries(machine, "drift.found")) == 3
