"""The local machine's file system: Debian packages, a Nix store, a first generation.

Three layers, each built once (see ``paths.layer``):

- ``base``: a Debian 13 root out of packages; half a minute, once per list of packages;
- ``system``: what the harness and the checkout add to it, with the first generation built and
  healer's package compiled; two seconds, each time healer/, nix/ or the guest's files change;
- ``disk``: both of these as an ext4 image, for the virtual machine only.
"""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.machine.paths import CHECKOUT, HERE, cache, digest, layer, remove, source_files

SUITE = "trixie"
PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "libdw1t64",  # with which systemd-coredump finds the stack
    "linux-image-cloud-amd64",
    "netcat-openbsd",
    "nix-bin",
    "procps",
    "python3",
    "python3-cryptography",
    "python3-h11",
    "python3-msgspec",
    "python3-sdbus",
    "python3-systemd",
    "python3-yaml",
    "systemd",
    "systemd-coredump",
    "systemd-sysv",
)
# Not in Debian, or not new enough there.
WHEELS = ("inotify_simple==2.0.1", "pyroute2==0.9.7")
DISK_SIZE = "6G"
MACHINE_ID = "6865616c6572000000006d616368696e"

# The files that the guest gets from the checkout, each with its directory below /srv/checkout.
_GUEST_FILES = (
    "activate.py",
    "build_package.py",
    "build_toplevel.py",
    "build_upstream.py",
    "switch_to_configuration.py",
    "toplevel.nix",
)

_NIX_CONF = """\
build-users-group =
sandbox = false
substitute = false
"""
_JOURNALD_CONF = """\
[Journal]
Storage=persistent
RateLimitIntervalSec=0
SystemMaxUse=64M
"""
# The virtual machine's one network card, without a daemon to set it up.
_UDEV_RULES = """\
ACTION=="add", SUBSYSTEM=="net", KERNEL=="eth0", \\
  RUN+="/usr/sbin/ip address add 10.0.2.15/24 dev eth0", RUN+="/usr/sbin/ip link set eth0 up"
"""
# Units that wait for what a test machine does not have, fail in a container, or only take time.
_MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "getty@tty1.service",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "modprobe@configfs.service",
    "modprobe@fuse.service",
    "proc-sys-fs-binfmt_misc.automount",
    "run-lock.mount",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-journal-catalog-update.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-pcrphase.service",
    "systemd-random-seed.service",
    "systemd-tpm2-setup-early.service",
    "systemd-tpm2-setup.service",
    "systemd-udev-load-credentials.service",
)

_PREPARE = """\
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t overlay overlay -o "$1" "$2"
mount --rbind /dev "$2/dev"
mount -t proc proc "$2/proc"
mount -t tmpfs tmpfs "$2/run"
mount -t tmpfs tmpfs "$2/tmp"
exec chroot "$2" sh -euc '
  toplevel=$(local-rebuild build /srv/checkout/first.json)
  nix-env -p /nix/var/nix/profiles/system --set "$toplevel"
  mkdir -p /boot/loader/entries
  echo "default nixos-generation-1.conf" >/boot/loader/loader.conf
  echo "options init=$toplevel/init" >/boot/loader/entries/nixos-generation-1.conf
  ln -s /run/current-system /run/booted-system /nix/var/nix/gcroots/
  nix-build -A package --out-link /nix/var/nix/gcroots/healer \
    /srv/checkout/tests/machine/toplevel.nix >/dev/null'
"""

_MAKE_DISK = """\
set -eu
mount -t overlay overlay -o "$1" "$2"
mkfs.ext4 -q -m 0 -E lazy_itable_init=1,lazy_journal_init=1 -d "$2" "$3" "$4"
"""


@dataclass(frozen=True, slots=True)
class System:
    """A file system to boot: overlay layers, the lowest last."""

    layers: tuple[Path, ...]

    @property
    def lowerdir(self) -> str:
        """The value of overlayfs's option of that name."""
        return ":".join(map(str, self.layers))


def base() -> Path:
    """Return the Debian root, building it if need be."""
    return layer("base", digest([SUITE, *PACKAGES, *WHEELS, MACHINE_ID]), _build_base) / "root"


def system() -> System:
    """Return the file system with the checkout's healer in it, building it if need be."""
    lower = base()
    sources = [CHECKOUT / "healer", CHECKOUT / "nix", HERE / "guest"]
    files = [file for directory in sources for file in source_files(directory)]
    files += [HERE / name for name in (*_GUEST_FILES, "rootfs.py")]
    contents = {file: file.read_bytes() for file in files}
    key = digest([str(lower), *(part for item in contents.items() for part in _keyed(item))])
    upper = layer("system", key, lambda scratch: _build_system(scratch, lower, contents))
    return System((upper / "root", lower))


def disk() -> Path:
    """Return the directory of the ext4 image (disk.img) and its kernel (vmlinuz)."""
    whole = system()
    return layer("disk", whole.layers[0].parent.name, lambda scratch: _build_disk(scratch, whole))


@functools.cache
def overlay_home() -> Path:
    """Return a directory that can hold an overlay's upper layer.

    That is the cache, unless it is itself on an overlay (as in a Docker container), where the
    kernel refuses; then shared memory, which is faster but knows no power cut.
    """
    for home in (cache(), Path("/dev/shm/healer-machine")):
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix="overlay-probe-") as directory:
            probe = Path(directory)
            for name in ("lower", "upper", "work", "root"):
                (probe / name).mkdir()
            options = overlay_options(str(probe / "lower"), probe)
            command = ["mount", "-t", "overlay", "overlay", "-o", options, str(probe / "root")]
            if _privately(command).returncode == 0:
                return home
    raise RuntimeError("overlayfs can be mounted neither on the cache nor on /dev/shm")


def overlay_options(lowerdir: str, directory: Path) -> str:
    """Return mount options for an overlay with its changes in DIRECTORY."""
    return f"lowerdir={lowerdir},upperdir={directory / 'upper'},workdir={directory / 'work'}"


def _keyed(item: tuple[Path, bytes]) -> tuple[str, bytes]:
    path, content = item
    return str(path.relative_to(CHECKOUT)), content


def _privately(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command whose mounts nobody else sees and that are gone when it ends."""
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--", *command],
        check=False,
        capture_output=True,
        text=True,
    )


def _checked(command: list[str], what: str) -> None:
    print(f"local machine: {what} …", file=sys.stderr, flush=True)
    done = _privately(command)
    if done.returncode != 0:
        raise RuntimeError(f"{what} failed (exit code {done.returncode}):\n{done.stderr[-4000:]}")


def _build_base(scratch: Path) -> None:
    root = scratch / "root"
    sources = scratch / "sources.list"
    sources.write_text(debian_sources(_apt_sources()))
    include = f"--include={','.join(PACKAGES)}"
    keep_out = [
        f"--dpkgopt=path-exclude=/usr/share/{directory}/*" for directory in ("doc", "locale", "man")
    ]
    _checked(
        ["mmdebstrap", "--variant=apt", include, *keep_out, SUITE, str(root), str(sources)],
        "unpacking Debian packages (once, about half a minute)",
    )
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target"]
    modules = str(root / "usr/lib/python3/dist-packages")
    _checked([*pip, modules, *WHEELS], "fetching what Debian does not have")
    # As on NixOS, all units of /etc are the generation's own.
    shutil.rmtree(root / "etc/systemd/system")
    (root / "etc/machine-id").write_text(f"{MACHINE_ID}\n")
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "var/log/journal" / MACHINE_ID).mkdir(parents=True)
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)


def _apt_sources() -> list[str]:
    directory = Path("/etc/apt")
    files = [directory / "sources.list", *sorted((directory / "sources.list.d").glob("*"))]
    wanted = [file for file in files if file.suffix in {".list", ".sources"} and file.exists()]
    return [file.read_text() for file in wanted]


def debian_sources(texts: list[str]) -> str:
    """Return sources.list(5) lines for SUITE from the mirrors that this machine's own apt uses."""
    mirrors: dict[str, str] = {}
    for text in texts:
        for uri in re.findall(r"^(?:URIs:|deb\b(?:\s*\[[^]]*\])?)\s*(\S+)", text, re.MULTILINE):
            match = re.search(r"/(debian|debian-security)/?$", uri)
            if match:
                mirrors.setdefault(match[1], uri)
    main = mirrors.get("debian", "http://deb.debian.org/debian")
    security = mirrors.get("debian-security", "http://deb.debian.org/debian-security")
    return "".join(
        f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {suite} main\n"
        for uri, suite in (
            (main, SUITE),
            (main, f"{SUITE}-updates"),
            (security, f"{SUITE}-security"),
        )
    )


def _build_system(scratch: Path, lower: Path, contents: dict[Path, bytes]) -> None:
    home = overlay_home() / f"{scratch.name}.work"
    remove(home)
    upper = home / "upper"
    for name in ("work", "root"):
        (home / name).mkdir(parents=True)
    for file, content in contents.items():
        target = upper / "srv/checkout" / file.relative_to(CHECKOUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    _place_harness(upper)
    _checked(
        ["sh", "-c", _PREPARE, "sh", overlay_options(str(lower), home), str(home / "root")],
        "building the first generation",
    )
    shutil.move(upper, scratch / "root")
    remove(home)


def _place_harness(root: Path) -> None:
    """Put in what NixOS's stage 1, boot loader and test instrumentation are for."""
    units = root / "usr/lib/systemd/system"
    wants = units / "multi-user.target.wants"
    wants.mkdir(parents=True)
    shutil.copy(HERE / "guest/backdoor.service", units)
    (wants / "backdoor.service").symlink_to("../backdoor.service")
    for name in _MASKED:
        (units / name).symlink_to("/dev/null")
    own = root / "usr/lib/local-machine"
    own.mkdir()
    for name, target in (
        ("backdoor.py", own),
        ("boot", own),
        ("local-rebuild", root / "usr/bin"),
    ):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "guest" / name, target)
        (target / name).chmod(0o755)
    for name, text in (
        ("etc/nix/nix.conf", _NIX_CONF),
        ("usr/lib/udev/rules.d/90-local-machine.rules", _UDEV_RULES),
        ("usr/lib/systemd/journald.conf.d/local-machine.conf", _JOURNALD_CONF),
        ("srv/checkout/first.json", "{}"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def _build_disk(scratch: Path, whole: System) -> None:
    mount_point = scratch / "root"
    mount_point.mkdir()
    image = scratch / "disk.img"
    arguments = [f"lowerdir={whole.lowerdir}", str(mount_point), str(image), DISK_SIZE]
    _checked(["sh", "-c", _MAKE_DISK, "sh", *arguments], "making the disk image")
    mount_point.rmdir()
    kernel = max((whole.layers[-1] / "boot").glob("vmlinuz-*"))
    shutil.copy(kernel, scratch / "vmlinuz")
