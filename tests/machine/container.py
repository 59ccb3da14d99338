"""The container back end: systemd as PID 1 under systemd-nspawn(1). Boots in half a second.

It shares the host's kernel: no power cuts (``crash()`` kills all processes, but what they wrote is
safe in the page cache), and on a host with legacy cgroups there are no controllers in it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.machine import paths, rootfs, scratch
from tests.machine.local import LocalMachine
from tests.machine.outcome import Completed, MachineError

BOOT_LOADER = "/usr/lib/local-machine/boot"
BOOT_TIMEOUT = 60
_POLL = 0.02
_PATH = "/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = [f"PATH={_PATH}", "HOME=/root", "USER=root", "LANG=C.UTF-8", "TERM=dumb"]
# nspawn's exit code when the machine asked for a reboot (EXIT_FORCE_RESTART).
_REBOOT_STATUS = 133

# Everything is mounted in a mount namespace of nspawn's own and goes with it.
_LAUNCH = """\
set -eu
for group in $1; do mkdir -p "$group"; echo $$ >"$group/cgroup.procs"; done
mount -t overlay overlay -o "$2" "$3"
shift 3
exec "$@"
"""
_ENTER = """\
echo $$ >"$1/cgroup.procs"
shift
exec "$@"
"""


class ContainerMachine(LocalMachine):
    """A machine in a container. Root only."""

    def __init__(self, name: str, out_dir: Path, init: tuple[str, ...] = (BOOT_LOADER,)) -> None:
        super().__init__(name, out_dir)
        self._init = init
        self._system = rootfs.system()
        self._holds = [paths.hold_layer(layer.parent) for layer in self._system.layers]
        self._directory, self._lock = scratch.claim_directory(rootfs.overlay_home(), name)
        self._id = self._directory.name
        for part in ("upper", "work", "root"):
            (self._directory / part).mkdir()
        self._console = self._directory / "console.log"
        self._console.touch()
        self._groups = [root / self._id for root in scratch.cgroup_roots()]
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._ready = False

    def start(self, allow_reboot: bool = True) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._ready = False
        # systemd-nspawn tells its leader's PID by sd_notify(3).
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(f"\0{self._id}")
            with self._console.open("ab") as console:
                self._process = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    env={
                        **os.environ,
                        "UNIFIED_CGROUP_HIERARCHY": "1",
                        "NOTIFY_SOCKET": f"@{self._id}",
                    },
                )
            self._leader = self._receive_leader(notify, self._process)

    def _command(self) -> list[str]:
        options = rootfs.overlay_options(self._system.lowerdir, self._directory)
        root = str(self._directory / "root")
        # setpriv: no container outlives the test run, whatever ends it.
        wrapper = ["setpriv", "--pdeathsig", "KILL"]
        wrapper += ["unshare", "--mount", "--propagation", "private"]
        launch = ["sh", "-c", _LAUNCH, "sh", " ".join(map(str, self._groups)), options, root]
        nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"]
        nspawn += ["--kill-signal=SIGRTMIN+3", "--capability=all"]
        nspawn += ["--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe"]
        nspawn += [f"--machine={self.name}", f"--directory={root}"]
        return [*wrapper, *launch, *nspawn, *self._init]

    def _receive_leader(self, notify: socket.socket, process: subprocess.Popen[bytes]) -> int:
        deadline = time.monotonic() + BOOT_TIMEOUT
        notify.settimeout(_POLL)
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(TimeoutError):
                for line in notify.recv(4096).decode().splitlines():
                    if line.startswith("X_NSPAWN_LEADER_PID="):
                        return int(line.partition("=")[2])
        raise MachineError(f"{self.name}: the container did not start:\n{self.console()[-4000:]}")

    def connect(self) -> None:
        if self._process is None or self._process.poll() is not None:
            if self._process is not None and self._process.returncode != _REBOOT_STATUS:
                raise MachineError(
                    f"{self.name}: the machine is off (status {self._process.returncode})"
                )
            self.start()
        if self._ready:
            return
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not (self._backdoor() / "cgroup.procs").exists():
            assert self._process is not None
            if self._process.poll() == _REBOOT_STATUS:  # asked for before the boot was complete
                self.start()
            elif self._process.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"{self.name}: does not boot:\n{self.console()[-4000:]}")
            time.sleep(_POLL)
        self._ready = True

    def _backdoor(self) -> Path:
        """Return the cgroup of backdoor.service, as the host sees it."""
        return self._groups[0] / "payload/system.slice/backdoor.service"

    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None and self._ready

    def run(self, argv: list[str], stdin: bytes = b"", *, wait: bool = True) -> Completed:
        enter = ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net"]
        enter += ["--pid", "--cgroup", "--", "env", "-i", "--chdir=/root", *_ENVIRONMENT, *argv]
        command = ["sh", "-c", _ENTER, "sh", str(self._backdoor()), *enter]
        if not wait:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            return Completed(0, b"", b"")
        # A file, for a program left in the background may keep standard error open.
        with tempfile.TemporaryFile() as stderr:
            # A session of its own: `kill 0` in the machine must not reach this process group.
            with subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            ) as process:
                stdout = _communicate(process, stdin)
            stderr.seek(0)
            return Completed(process.returncode, stdout, stderr.read())

    def read(self, pattern: str) -> bytes:
        """Look through the machine's own mounts: nothing has to be started in it."""
        self.connect()
        root = Path(f"/proc/{self._leader}/root")
        with contextlib.suppress(OSError):  # it may go down meanwhile
            return b"".join(path.read_bytes() for path in sorted(root.glob(pattern.lstrip("/"))))
        return b""

    def wait_for_shutdown(self) -> None:
        if self._process is not None:
            with self.nested("waiting for the container to power off"):
                self._process.wait(timeout=BOOT_TIMEOUT)
        self._process = None
        self._ready = False

    def crash(self) -> None:
        """Kill every process of the machine at once; what they wrote stays written."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._ready = False
        for group in self._groups:
            scratch.remove_cgroup(group)

    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def release(self) -> None:
        """Kill the machine and delete all that it wrote."""
        self.crash()
        scratch.release_directory(self._directory, self._lock)
        for descriptor in self._holds:
            os.close(descriptor)
        self._holds = []


def _communicate(process: "subprocess.Popen[bytes]", stdin: bytes) -> bytes:
    """Return the output of a program in the machine, also where that goes down meanwhile.

    systemd then stops what still runs (SIGSTOP) before it kills it; nsenter(1) stops itself with
    its child, would never reap it, and the machine would wait for that for ever.
    """
    pending: bytes | None = stdin
    while True:
        try:
            return process.communicate(pending, timeout=1)[0]
        except subprocess.TimeoutExpired:
            pending = None
            process.send_signal(signal.SIGCONT)
