"""A small NixOS in a directory: a toplevel, and an /etc that setup-etc has just made from it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from healer.drift.compare import Finding, Ignore, compare
from healer.drift.scan import Roots, read_declaration, scan

UNITS = frozenset({"worker.service", "foo-bar.service", "inst@one.service"})


@dataclass(frozen=True)
class Machine:
    base: Path

    @property
    def roots(self) -> Roots:
        return Roots(
            root=self.root,
            current_system=self.root / "run/current-system",
            mountinfo=self.base / "mountinfo",
        )

    @property
    def root(self) -> Path:
        return self.base / "root"

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def build(self, name: str, *, motd: str = "hello") -> Path:
        """Make a toplevel like nixpkgs' make-etc.sh: links into a store, and the side files."""
        etc, store = self.base / name / "etc", self.base / f"{name}-store"
        (store / "units/multi-user.target.wants").mkdir(parents=True)
        for unit in ("worker.service", "foo-bar.service", "inst@.service", "sshd.service"):
            (store / "units" / unit).write_text(f"[Service]\nExecStart=/{name}/{unit}\n")
        (store / "units/labourer.service").symlink_to("worker.service")
        (store / "units/multi-user.target.wants/sshd.service").symlink_to("../sshd.service")
        (store / "motd").write_text(motd)
        (store / "sudoers").write_text("root ALL")
        for path in ("systemd", "ssh/keys.d", "empty"):
            (etc / path).mkdir(parents=True)
        (etc / "motd").symlink_to(store / "motd")
        (etc / "ssh/sshd_config").symlink_to(store / "motd")
        (etc / "ssh/keys.d/root").symlink_to(store / "motd")
        (etc / "resolv.conf").symlink_to(store / "motd")
        (etc / "systemd/system").symlink_to(store / "units")
        (etc / "mtab").symlink_to("/proc/mounts")
        (etc / "mtab.mode").write_text("direct-symlink\n")
        (etc / "sudoers").symlink_to(store / "sudoers")
        (etc / "sudoers.mode").write_text("0440\n")
        (etc / "sudoers.uid").write_text(f"+{os.getuid()}\n")
        (etc / "sudoers.gid").write_text(f"+{os.getgid()}\n")
        return self.base / name

    def activate(self, toplevel: Path) -> None:
        """Do what setup-etc.pl does, and then move /run/current-system."""
        source = toplevel / "etc"
        self._link("/etc/static", str(source))
        for path in sorted(source.rglob("*")):
            relative = path.relative_to(source)
            mode = path.with_name(f"{path.name}.mode")
            if not path.is_symlink():
                continue
            if not mode.exists():
                self._link(f"/etc/{relative}", f"/etc/static/{relative}")
            elif mode.read_text().strip() == "direct-symlink":
                self._link(f"/etc/{relative}", str(path.readlink()))
            else:
                target = self.path(f"/etc/{relative}")
                shutil.copyfile(path, target)
                target.chmod(int(mode.read_text(), 8))
        (self.root / "etc/empty").mkdir(exist_ok=True)
        self._link("/run/current-system", str(toplevel))

    def _link(self, path: str, target: str) -> None:
        where = self.path(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        temporary = where.with_name(f"{where.name}.tmp")
        temporary.symlink_to(target)
        temporary.rename(where)

    def write(self, path: str, text: str = "[Service]\n") -> Path:
        where = self.path(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        if where.is_symlink():
            where.unlink()
        where.write_text(text)
        return where

    def findings(self, *ignores: Ignore) -> dict[str, Finding]:
        snapshot = scan(self.roots, UNITS, read_declaration(self.roots))
        return {finding.subject: finding for finding in compare(snapshot, ignores)}
