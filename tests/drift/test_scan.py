"""The scan against a real directory tree."""

import hashlib
import os
import socket
from pathlib import Path

import pytest

from healer.config import Ignore
from healer.drift import observe
from healer.drift.compare import DriftClass
from healer.drift.scan import etc_overlay_reason, read_declaration, scan
from healer.drift.units import drop_in_stems
from tests.drift.machine import UNITS, Machine


def test_a_machine_as_declared_has_no_drift(machine: Machine) -> None:
    assert machine.findings() == {}


def test_files_that_nobody_declared_are_not_drift(machine: Machine) -> None:
    machine.write("/etc/ssh/ssh_host_ed25519_key", "secret")
    machine.write("/etc/passwd", "root:x:0:0::/root:/bin/sh")
    assert machine.findings() == {}


def test_a_link_replaced_by_a_file(machine: Machine) -> None:
    machine.write("/etc/motd", "owned").chmod(0o644)
    finding = machine.findings()["/etc/motd"]
    assert finding.drift_class is DriftClass.ETC
    assert finding.expected == "link to /etc/static/motd"
    digest = hashlib.sha256(b"owned").hexdigest()
    owner = f"{os.getuid()}:{os.getgid()}"
    assert finding.observed == f"file, mode 0644, owner {owner}, 5 bytes, sha256 {digest}"


def test_another_content_is_another_finding(machine: Machine) -> None:
    machine.write("/etc/motd", "owned")
    first = machine.findings()["/etc/motd"]
    machine.write("/etc/motd", "OWNED")
    second = machine.findings()["/etc/motd"]
    assert first != second
    assert first.incident == second.incident


@pytest.mark.parametrize("target", ["/tmp/evil", "static/motd", "/etc/static/ssh/sshd_config"])
def test_a_link_to_somewhere_else(machine: Machine, target: str) -> None:
    machine.path("/etc/motd").unlink()
    machine.path("/etc/motd").symlink_to(target)
    assert machine.findings()["/etc/motd"].observed == f"link to {target}"


def test_a_removed_link(machine: Machine) -> None:
    machine.path("/etc/ssh/sshd_config").unlink()
    assert machine.findings()["/etc/ssh/sshd_config"].observed == "nothing"


def test_a_direct_symlink_is_compared_with_where_it_leads(machine: Machine) -> None:
    machine.path("/etc/mtab").unlink()
    machine.path("/etc/mtab").symlink_to("/etc/static/mtab")
    finding = machine.findings()["/etc/mtab"]
    assert finding.expected == "link to /proc/mounts"
    assert finding.observed == "link to /etc/static/mtab"


def test_the_content_and_the_mode_of_a_copied_file(machine: Machine) -> None:
    sudoers = machine.path("/etc/sudoers")
    sudoers.chmod(0o666)
    assert "mode 0666" in machine.findings()["/etc/sudoers"].observed
    sudoers.write_text("evil ALL")
    sudoers.chmod(0o440)
    finding = machine.findings()["/etc/sudoers"]
    assert hashlib.sha256(b"evil ALL").hexdigest() in finding.observed
    assert hashlib.sha256(b"root ALL").hexdigest() in finding.expected


def test_static_that_leads_to_another_generation(machine: Machine) -> None:
    other = machine.build("system-2")
    machine.path("/etc/static").unlink()
    machine.path("/etc/static").symlink_to(other / "etc")
    finding = machine.findings()["/etc/static"]
    assert finding.observed == f"link to {other}/etc"


def test_a_directory_replaced_by_a_link_is_one_finding(machine: Machine) -> None:
    machine.path("/etc/ssh").rename(machine.base / "moved")
    machine.path("/etc/ssh").symlink_to(machine.base / "moved")
    findings = machine.findings()
    assert set(findings) == {"/etc/ssh"}
    assert findings["/etc/ssh"].observed == f"link to {machine.base}/moved"


def test_below_an_ignored_directory_the_files_are_still_compared(machine: Machine) -> None:
    machine.path("/etc/ssh").rename(machine.base / "moved")
    machine.path("/etc/ssh").symlink_to(machine.base / "moved")
    ignore = Ignore(path="/etc/ssh", reason="kept on the persistent disk")
    assert machine.findings(ignore) == {}
    machine.write("/etc/ssh/sshd_config", "PermitRootLogin yes")
    assert set(machine.findings(ignore)) == {"/etc/ssh/sshd_config"}


def test_the_built_in_ignores(machine: Machine) -> None:
    machine.write("/etc/resolv.conf", "nameserver 192.0.2.1")
    assert machine.findings() == {}


def test_an_unreadable_directory_says_which_error(machine: Machine) -> None:
    if os.geteuid() == 0:
        _become_nobody_and(machine)
        return
    machine.path("/etc/ssh").chmod(0)
    assert machine.findings()["/etc/ssh"].observed == "cannot be read: EACCES"


def _become_nobody_and(machine: Machine) -> None:
    """Look as uid 65534, in a child: root can read everything."""
    for path in [*machine.base.parents, machine.base]:
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o011)
    machine.path("/etc/ssh").chmod(0o700)
    machine.path("/run/systemd/system").chmod(0o700)
    machine.path("/etc/sudoers").chmod(0o400)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        lines = [f"{name}\t{finding.observed}" for name, finding in machine.findings().items()]
        os.write(writing, "\n".join(sorted(lines)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as output:
        found = dict(line.split("\t") for line in output.read().splitlines())
    os.waitpid(child, 0)
    # Of the copy only the mode is wrong: that its content cannot be read is no drift.
    assert found.pop("/etc/sudoers").startswith("file, mode 0400, owner 0:0, 8 bytes, content not")
    assert found == {
        "/etc/ssh": "cannot be read: EACCES",
        "/run/systemd/system": "cannot be read: EACCES",
    }


def test_a_symlink_loop_and_a_fifo_and_a_socket_do_not_stop_the_scan(machine: Machine) -> None:
    loop = machine.path("/run/systemd/system/loop.service")
    loop.symlink_to("loop.service")
    os.mkfifo(machine.path("/run/systemd/system/fifo.service"))
    machine.path("/etc/motd").unlink()
    os.mkfifo(machine.path("/etc/motd"))
    machine.path("/etc/mtab").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(machine.path("/etc"))  # a socket's path is short
        server.bind("mtab")
        os.chdir(here)
        findings = machine.findings()
    assert findings["/etc/motd"].observed == "special file"
    assert findings["/etc/mtab"].observed == "special file"
    assert findings["/run/systemd/system/loop.service"].observed == "link to loop.service"
    assert findings["/run/systemd/system/fifo.service"].observed == "special file"


def test_only_the_beginning_of_a_huge_file_is_hashed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "HASH_BYTES", 4)
    machine.write("/etc/motd", "owned")
    digest = hashlib.sha256(b"owne").hexdigest()
    assert f"sha256 of the first 4 bytes {digest}" in machine.findings()["/etc/motd"].observed


def test_a_name_that_is_not_utf8(machine: Machine) -> None:
    name = os.fsdecode(b"caf\xe9.service")
    machine.write(f"/run/systemd/system/{name}")
    (subject,) = machine.findings()
    assert subject == "/run/systemd/system/caf\\xe9.service"
    subject.encode("utf-8")


@pytest.mark.parametrize(
    "path",
    [
        "/run/systemd/system/any.service",
        "/run/systemd/system/any.service.d/x.conf",
        "/run/systemd/system/worker.service",
        "/run/systemd/system/worker.service.d/override.conf",
        "/run/systemd/system.control/worker.service.d/50-MemoryMax.conf",
        "/etc/systemd/system.control/worker.service.d/50-MemoryMax.conf",
        "/run/systemd/transient/worker.service",
        "/usr/local/lib/systemd/system/worker.service",
        "/usr/local/lib/systemd/system/labourer.service.d/alias.conf",
        "/run/systemd/transient/service.d/all.conf",
        "/run/systemd/transient/foo-.service.d/prefix.conf",
        "/run/systemd/transient/inst@.service.d/template.conf",
        "/run/systemd/transient/inst@one.service.d/instance.conf",
        "/usr/local/lib/systemd/system/inst@.service",
        "/run/systemd/transient/healer.service.d/disarm.conf",
        "/run/systemd/system.control/worker.service.wants/evil.service",
        "/run/systemd/system/multi-user.target.wants/worker.service",
    ],
)
def test_unexpected_unit_files(machine: Machine, path: str) -> None:
    machine.write(path)
    finding = machine.findings()[path]
    in_a_directory = "/" in path.rsplit("/system/", maxsplit=1)[-1].rsplit(
        "/transient/", maxsplit=1
    )[-1].lstrip("/")
    assert finding.drift_class is (DriftClass.DROP_IN if in_a_directory else DriftClass.UNIT)
    assert set(machine.findings()) == {path}


@pytest.mark.parametrize("unit", ["healer.service", "healer-helper.socket"])
def test_units_of_healers_own_kept_for_a_system_without_it(machine: Machine, unit: str) -> None:
    kept = f"/run/systemd/system/{unit}"
    declared = machine.base / f"system-1-store/units/{unit}"
    machine.write(kept, "as it was")
    assert machine.findings() == {}
    declared.write_text("as it is")
    assert machine.findings().keys() == {kept}
    machine.write(kept, "as it is")
    assert machine.findings() == {}


@pytest.mark.parametrize(
    "path",
    [
        "/run/systemd/transient/run-u7.service",
        "/run/systemd/transient/nixos-rebuild-switch-to-configuration.service",
        "/run/systemd/transient/session-1.scope.d/50.conf",
        "/run/systemd/transient/foo.service.d/other-prefix.conf",
        "/run/systemd/system.control/user-1000.slice.d/50-MemoryMax.conf",
        "/run/systemd/generator/worker.service.d/generated.conf",
        "/run/systemd/system/worker.service.d/.#override.conf",
        "/run/systemd/system/worker.service.d/README",
        "/run/systemd/system/notes.txt",
        "/usr/local/lib/systemd/system/other.service",
        "/etc/systemd-mutable/system/container@x.service",
    ],
)
def test_files_that_change_no_supervised_unit(machine: Machine, path: str) -> None:
    machine.write(path)
    assert machine.findings() == {}


def test_a_masked_unit(machine: Machine) -> None:
    machine.path("/run/systemd/system/worker.service").symlink_to("/dev/null")
    finding = machine.findings()["/run/systemd/system/worker.service"]
    assert finding.observed == "link to /dev/null"


def test_a_drop_in_that_is_a_link_is_new_when_what_it_leads_to_changes(machine: Machine) -> None:
    evil = machine.base / "evil.conf"
    evil.write_text("[Service]\nUser=root\n")
    path = machine.path("/run/systemd/system/worker.service.d/x.conf")
    path.parent.mkdir()
    path.symlink_to(evil)
    (first,) = machine.findings().values()
    evil.write_text("[Service]\nUser=evil\n")
    (second,) = machine.findings().values()
    assert first != second


def test_declared_units_made_a_real_directory(machine: Machine) -> None:
    units = machine.path("/etc/systemd/system")
    declared = machine.base / "system-1-store/units"
    units.unlink()
    units.mkdir()
    for unit in declared.glob("*.service"):
        (units / unit.name).write_bytes(unit.read_bytes())
    (units / "worker.service").write_text("[Service]\nExecStart=/evil\n")
    machine.write("/etc/systemd/system/extra.timer")
    assert set(machine.findings()) == {
        "/etc/systemd/system",
        "/etc/systemd/system/worker.service",
        "/etc/systemd/system/extra.timer",
    }


def test_an_overlay_on_etc_turns_only_etc_off(machine: Machine) -> None:
    root = "22 1 0:20 / / rw shared:1 - ext4 /dev/vda1 rw\n"
    overlay = "30 22 0:27 / /etc rw,relatime shared:9 - overlay overlay rw,lowerdir=/run/etc\n"
    assert etc_overlay_reason(root) is None
    assert "system.etc.overlay.enable" in str(etc_overlay_reason(root + overlay))
    later = "31 22 0:28 / /etc rw - tmpfs tmpfs rw\n"
    assert etc_overlay_reason(root + overlay + later) is None
    (machine.base / "mountinfo").write_text(root + overlay)
    machine.write("/etc/motd", "as the image has it")
    machine.write("/run/systemd/system/worker.service")
    assert set(machine.findings()) == {"/run/systemd/system/worker.service"}


@pytest.mark.parametrize("text", ["", "\n", "x", "a b c d /etc", "a b c d /etc - ", " - \n - - -"])
def test_a_strange_mountinfo_is_no_overlay(text: str) -> None:
    assert etc_overlay_reason(text) is None


def test_without_a_declaration_nothing_is_compared(machine: Machine) -> None:
    machine.path("/run/current-system").unlink()
    snapshot = scan(machine.roots, UNITS, read_declaration(machine.roots))
    assert "no NixOS system declares" in str(snapshot.off)
    assert not snapshot.unit_files


def test_drop_in_stems_are_those_of_systemd_unit_5() -> None:
    assert drop_in_stems("foo-bar-baz.service") == {
        "foo-bar-baz.service",
        "foo-bar-.service",
        "foo-.service",
        "service",
    }
    assert {"a-b@c.service", "a-b@.service", "a-.service"} <= drop_in_stems("a-b@c.service")
