"""The machine that is measured: a container of the test harness, with the peers in it.

The peers come from Debian, into a layer of their own between the base and healer's system, so that
the tests' machine stays as it is and a change of healer does not fetch them again.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.machine import paths, rootfs
from tests.machine.container import ContainerMachine

PEERS = ("supervisor", "runit", "s6", "monit")
GUEST = "/srv/bench"
RUN = "/run/bench"
FIFO = f"{RUN}/fifo"

_LOG_WIDTH = 300

_HERE = Path(__file__).resolve().parent
_NO_SERVICES = "#!/bin/sh\nexit 101\n"

_INSTALL = """\
set -eu
options=$1 root=$2
shift 2
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8
mount -t overlay overlay -o "$options" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
for directory in run tmp var/lib/apt/lists var/cache/apt; do
  mkdir -p "$root/$directory"
  mount -t tmpfs tmpfs "$root/$directory"
done
mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial"
touch "$root/etc/resolv.conf"
mount --bind -o ro /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" apt-get -q update
chroot "$root" apt-get -q -y --no-install-recommends install "$@"
"""


class BenchMachine(ContainerMachine):
    """A container with the measuring programs in it, and the peers if they are asked for."""

    def __init__(self, name: str, out_dir: Path, *, with_peers: bool = False) -> None:
        super().__init__(name, out_dir)
        if not with_peers:
            return
        peers = _peers()
        self._holds.append(paths.hold_layer(peers.parent))
        top, base = self._system.layers
        self._system = rootfs.System((top, peers, base))

    def log(self, msg: str) -> None:
        # A switch names its units, and here there are a thousand of them.
        super().log(msg if len(msg) <= _LOG_WIDTH else f"{msg[:_LOG_WIDTH]} …")

    def wait_for_healer(self) -> None:
        """Wait until the daemon has looked at the host once."""
        self.wait_until_succeeds("test -s /run/healer/status.json", timeout=120)

    def measure(self, module: str, /, **options: Any) -> Any:
        """Run ``bench.guest.MODULE`` in the machine with OPTIONS; return what it prints."""
        # The checkout that healer's package was built from: healer's modules can be measured too.
        environment = f"PYTHONPATH={GUEST}:/srv/checkout PYTHONDONTWRITEBYTECODE=1"
        self.write_file(f"{RUN}/options.json", json.dumps(options))
        command = f"{environment} python3 -m bench.guest.{module} {RUN}/options.json"
        code, out = self.execute(command, timeout=1800)
        if code != 0:
            raise RuntimeError(f"bench.guest.{module} failed; the journal:\n{self.journal(40)}")
        return json.loads(out)


@contextmanager
def machine(name: str, *, with_peers: bool = False) -> Iterator[BenchMachine]:
    """A machine that is started, and gone afterwards."""
    with tempfile.TemporaryDirectory() as out:
        booted = BenchMachine(name, Path(out), with_peers=with_peers)
        try:
            booted.start()
            booted.copy_from_host(str(_HERE / "__init__.py"), f"{GUEST}/bench/__init__.py")
            booted.copy_from_host(str(_HERE / "guest"), f"{GUEST}/bench/guest")
            yield booted
        finally:
            booted.release()


def announcer(name: str) -> list[str]:
    """The command of a measured program: it says that it runs, and sleeps."""
    return ["/bin/sh", f"{GUEST}/bench/guest/announce.sh", name]


def bare(name: str, **service: Any) -> dict[str, Any]:
    """A unit without healer that restarts at once, to be compared with an agent."""
    return {
        "wantedBy": ["multi-user.target"],
        "unitConfig": {"StartLimitIntervalSec": 0},
        "serviceConfig": {
            "ExecStart": " ".join(announcer(name)),
            "Restart": "always",
            "RestartSec": 0,
            **service,
        },
    }


def agent(name: str, **options: Any) -> dict[str, Any]:
    """The same as an agent of healer's, with a crash-loop budget that is not spent."""
    return {
        "command": announcer(name),
        "user": "root",
        "crashLoop": {"maxCrashes": 1000, "windowSec": 1},
        "stableSec": 3600,
        **options,
    }


def system(
    agents: dict[str, Any] | None = None, services: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A system with these agents, healer if there are any, and these bare units."""
    whole: dict[str, Any] = {
        "tmpfiles": [f"d {RUN} 0755 root root -", f"p {FIFO} 0666 root root -"],
        "services": services or {},
        **more,
    }
    if agents:
        whole["healer"] = {"agents": agents}
    return whole


def _peers() -> Path:
    """Return the layer with the peers, building it if need be."""
    base = rootfs.base()
    key = paths.digest([str(base), *PEERS, _INSTALL])
    return paths.layer("peers", key, lambda scratch: _build_peers(scratch, base)) / "root"


def _build_peers(scratch: Path, base: Path) -> None:
    home = rootfs.overlay_home() / f"{scratch.name}.work"
    paths.remove(home)
    for name in ("upper", "work", "root"):
        (home / name).mkdir(parents=True)
    policy = home / "upper/usr/sbin/policy-rc.d"
    policy.parent.mkdir(parents=True)
    policy.write_text(_NO_SERVICES)
    policy.chmod(0o755)
    options = rootfs.overlay_options(str(base), home)
    command = ["unshare", "--mount", "--propagation", "private", "--"]
    command += ["sh", "-c", _INSTALL, "sh", options, str(home / "root"), *PEERS]
    print("bench: fetching the peers (once) …", flush=True)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"apt-get install {' '.join(PEERS)} failed:\n{done.stderr[-4000:]}")
    # Each peer runs from a unit of the bench's own; what the packages enable must not run as well.
    for enabled in ("etc/systemd", "etc/runit", "etc/service", "usr/sbin/policy-rc.d"):
        _remove(home / "upper" / enabled)
    shutil.move(home / "upper", scratch / "root")
    paths.remove(home)


def _remove(path: Path) -> None:
    """Remove a file or a tree if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
