"""Whether this host can boot the local machine, and if not, what is missing."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.machine import rootfs
from tests.machine.container import ContainerMachine
from tests.machine.outcome import MachineError

# Program -> the Debian package that has it.
_COMMON = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux"}
_CONTAINER = {**_COMMON, "systemd-nspawn": "systemd-container", "nsenter": "util-linux"}
_VM = {
    **_COMMON,
    "mkfs.ext4": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}


@functools.cache
def why_no_container() -> str | None:
    """Return why no container can be booted here, or None if one can."""
    return _missing(_CONTAINER) or _no_root_file_system() or _no_nspawn()


@functools.cache
def why_no_vm() -> str | None:
    """Return why no virtual machine can be booted here, or None if one can."""
    return _missing(_VM) or _no_root_file_system()


def _missing(programs: dict[str, str]) -> str | None:
    if os.geteuid() != 0:
        return "needs root (to build a root file system and mount overlays)"
    packages = {package for program, package in programs.items() if not shutil.which(program)}
    if packages:
        return f"needs `apt-get install {' '.join(sorted(packages))}`"
    return None


def _no_root_file_system() -> str | None:
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "true"], check=False, capture_output=True
    )
    if done.returncode != 0:
        return f"needs mount namespaces: {done.stderr.decode().strip()}"
    try:
        rootfs.overlay_home()
        rootfs.base()
    except RuntimeError as error:
        return f"needs a root file system: {error}"
    return None


def _no_nspawn() -> str | None:
    """Try all that the host has to allow, with a program that cannot fail instead of systemd."""
    with tempfile.TemporaryDirectory() as out:
        probe = ContainerMachine("probe", Path(out), init=("/usr/bin/true",))
        try:
            probe.start()
            probe.wait_for_shutdown()
        except (MachineError, OSError, subprocess.TimeoutExpired) as error:
            return f"systemd-nspawn does not run here: {error}"
        finally:
            probe.release()
    return None


def main() -> None:
    """Say what can be booted here, building the root file system on the way."""
    for name, reason in (("containers", why_no_container()), ("virtual machines", why_no_vm())):
        print(f"{name}: {'ready' if reason is None else f'NOT HERE: {reason}'}", flush=True)


if __name__ == "__main__":
    main()
