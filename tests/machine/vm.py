"""The virtual machine back end: a kernel of its own under QEMU, with a disk that can lose power.

The kernel is started directly and has NVMe, ext4 and virtio-serial built in, so there is no initrd.
A power cut loses what the guest's kernel had not yet written, and nothing else: the disk is a raw
file, so that what the guest was told is written outlives QEMU. QEMU's NVMe takes no notice of FUA,
by which Linux has a journal's commit written through the cache. In a qcow2 file the place of such a
block can be known to QEMU's memory alone, and a power cut took files that were synced.
"""

import base64
import contextlib
import fcntl
import functools
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.machine import paths, rootfs, scratch
from tests.machine.local import LocalMachine
from tests.machine.outcome import DEFAULT_TIMEOUT, Completed, MachineError

MEMORY_MB = 768
_KVM_CREATE_VM = 0xAE01
_KVM = ["-accel", "kvm", "-cpu", "host"]
# A processor without AVX: what glibc would do with it is slow to emulate.
_EMULATION = ["-accel", "tcg", "-cpu", "Nehalem"]
_POLL = 0.02
_BOOT_LOADER = "/usr/lib/local-machine/boot"


@functools.cache
def has_kvm() -> bool:
    """Say whether the processor's own virtualisation works, by booting a kernel with it.

    To open the device and to create a machine proves little: where the host is itself a virtual
    machine, KVM may be there and not run this kernel. The answer is kept until the host reboots.
    """
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
    except OSError:
        return False
    finally:
        os.close(device)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = paths.cache() / f"kvm-{boot_id}"
    with paths.locked(paths.cache() / "kvm.lock"):
        if not answer.exists():
            answer.write_text("yes" if _kernel_runs_under_kvm() else "no")
    return answer.read_text() == "yes"


def _kernel_runs_under_kvm() -> bool:
    """Boot the kernel without a disk: it runs if it gets as far as to miss its root."""
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *_KVM, "-machine", "q35"]
    command += ["-m", "256", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(rootfs.disk() / "vmlinuz"), "-append", "console=ttyS0 panic=-1"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return b"Kernel panic" in done.stdout


def boot_timeout() -> float:
    """Return how long a boot may take, in seconds: emulation is some ten times slower."""
    return 60 if has_kvm() else 400


class _Channel:
    """JSON lines over one end of a socket pair whose other end QEMU has."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self._pending = b""

    def send(self, message: dict[str, Any]) -> None:
        self.ours.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any]:
        """Return the next message. Raises TimeoutError, or EOFError when QEMU is gone."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            self.ours.settimeout(max(deadline - time.monotonic(), _POLL))
            data = self.ours.recv(1 << 16)
            if not data:
                raise EOFError
            self._pending += data
            if time.monotonic() > deadline:
                raise TimeoutError
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class VirtualMachine(LocalMachine):
    """A machine under QEMU, by KVM or, ten times slower, by emulation."""

    def __init__(self, name: str, out_dir: Path) -> None:
        super().__init__(name, out_dir)
        if not has_kvm():
            self.interval = 1.0
        self._base = rootfs.disk()
        self._hold = paths.hold_layer(self._base)
        self._directory, self._lock = scratch.claim_directory(paths.cache(), name)
        self._disk = self._directory / "disk.img"
        copy = ["cp", "--reflink=auto", "--sparse=always", str(self._base / "disk.img")]
        subprocess.run([*copy, str(self._disk)], check=True)
        self._console = self._directory / "console.log"
        self._console.touch()
        self._process: subprocess.Popen[bytes] | None = None
        self._backdoor = _Channel()
        self._monitor = _Channel()
        self._ready = False
        self._allow_reboot = True

    def start(self, allow_reboot: bool = True) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._ready = False
        self._close_channels()
        self._backdoor, self._monitor = _Channel(), _Channel()
        descriptors = [channel.theirs.fileno() for channel in (self._backdoor, self._monitor)]
        with (self._directory / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(*descriptors),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
            )
        self._backdoor.theirs.close()
        self._monitor.theirs.close()
        self._allow_reboot = allow_reboot
        self._monitor.send({"execute": "qmp_capabilities"})

    def _command(self, backdoor: int, monitor: int) -> list[str]:
        kernel = f"root=/dev/nvme0n1 rw init={_BOOT_LOADER} console=ttyS0 panic=-1 loglevel=4"
        kernel += f" mitigations=off net.ifnames=0 systemd.hostname={self.name}"
        # Whoever is emulated does a tenth of the work in the same time, and others wait for it.
        priority = [] if has_kvm() else ["nice", "-n", "-5"]
        command = [*priority, "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
        command += _KVM if has_kvm() else _EMULATION
        command += ["-machine", "q35,sata=off", "-m", str(MEMORY_MB), "-smp", "2"]
        # A reset ends QEMU, and a new one is started: after a warm reset emulation is very slow.
        command += [
            "-no-reboot",
            "-nodefaults",
            "-display",
            "none",
            "-kernel",
            str(self._base / "vmlinuz"),
            "-append",
            kernel,
        ]
        disk = f"file={self._disk},format=raw,if=none,id=disk,cache={self._cache_mode()}"
        command += ["-drive", disk]
        command += ["-device", "nvme,drive=disk,serial=disk", "-device", "virtio-rng-pci"]
        command += ["-chardev", f"file,id=console,append=on,path={self._console}"]
        command += ["-serial", "chardev:console", "-device", "virtio-serial"]
        command += ["-chardev", f"socket,id=backdoor,fd={backdoor}"]
        command += ["-device", "virtserialport,chardev=backdoor,name=backdoor"]
        command += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "monitor,mode=control"]
        return [*command, "-nic", "user,id=cable,model=virtio-net-pci,restrict=on"]

    def _cache_mode(self) -> str:
        """Go past the host's page cache where its file system lets us (tmpfs may not)."""
        try:
            os.close(os.open(self._disk, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
        except OSError:
            return "writeback"
        return "none"

    def connect(self) -> None:
        if self._process is None:
            self.start()
        if self._ready:
            return
        with self.nested("waiting for the VM to finish booting"):
            while "ready" not in self._message(boot_timeout()):
                pass
        self._ready = True

    def _message(self, timeout: float) -> dict[str, Any]:
        """Return what the guest says next, on the far side of a reboot if there is one."""
        try:
            return self._backdoor.receive(timeout)
        except (EOFError, ConnectionError) as error:
            self._ready = False
            if self._process is not None:
                self._process.wait()
            if self._wants_reboot():
                self.start()
                return self._message(timeout)
            raise MachineError(f"{self.name}: the machine is off\n{self._last_words()}") from error
        except TimeoutError as error:
            raise MachineError(
                f"{self.name}: no answer in {timeout} s\n{self._last_words()}"
            ) from error

    def _wants_reboot(self) -> bool:
        """Say whether QEMU ended because the guest asked for a reset."""
        with contextlib.suppress(EOFError, OSError):
            while self._allow_reboot:
                event = self._monitor.receive(timeout=1)
                if event.get("event") == "SHUTDOWN":
                    return bool(event["data"]["reason"] == "guest-reset")
        return False

    def _last_words(self) -> str:
        log = (self._directory / "qemu.log").read_text(errors="replace")
        return f"{log}{self.console()[-4000:]}"

    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None and self._ready

    def run(self, argv: list[str], stdin: bytes = b"", *, wait: bool = True) -> Completed:
        data = base64.b64encode(stdin).decode()
        self._backdoor.send({"command": argv, "stdin": data, "detach": not wait})
        if not wait:
            return Completed(0, b"", b"")
        # The command has its own limit inside the machine; this one is for a machine that hangs.
        answer = self._message(DEFAULT_TIMEOUT + 60)
        if "ready" in answer:
            self._ready = True
            raise MachineError(f"{self.name}: the machine rebooted during {argv}")
        return Completed(
            answer["status"],
            base64.b64decode(answer["stdout"]),
            base64.b64decode(answer["stderr"]),
        )

    def wait_for_shutdown(self) -> None:
        if self._process is not None:
            with self.nested("waiting for the VM to power off"):
                self._process.wait(timeout=boot_timeout())
        self._off()

    def reboot(self) -> None:
        self.connect()
        self.execute("systemctl reboot --no-block", check_output=False)
        self._ready = False

    def crash(self) -> None:
        """Cut the power: QEMU is killed, and with it all that was not flushed to the disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._off()

    def _off(self) -> None:
        self._process = None
        self._ready = False

    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def block(self) -> None:
        self._set_link(up=False)

    def unblock(self) -> None:
        self._set_link(up=True)

    def _set_link(self, *, up: bool) -> None:
        self._monitor.send(
            {"execute": "set_link", "arguments": {"name": "cable", "up": up}, "id": 1}
        )
        while True:
            answer = self._monitor.receive(timeout=10)
            if answer.get("id") == 1:
                if "error" in answer:
                    raise MachineError(f"{self.name}: set_link: {answer['error']}")
                return

    def release(self) -> None:
        """Kill the machine and delete its disk."""
        self.crash()
        self._close_channels()
        scratch.release_directory(self._directory, self._lock)
        os.close(self._hold)

    def _close_channels(self) -> None:
        self._backdoor.close()
        self._monitor.close()
