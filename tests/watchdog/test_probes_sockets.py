"""TCP checks, and listening sockets that nobody connects to."""

import ipaddress
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from healer.config import ListenCheck, TcpCheck
from healer.watchdog.probes.listen import Listener, listeners
from tests.watchdog.looking import ERROR, FAILED, OK, look, outcome

# TCP


def test_tcp(silent_port: int, unused_port: int) -> None:
    assert outcome(TcpCheck(name="p", port=silent_port)) is OK
    assert outcome(TcpCheck(name="p", port=silent_port, host="localhost")) is OK
    assert outcome(TcpCheck(name="p", port=unused_port)) is FAILED
    # Each of its addresses refuses.
    assert outcome(TcpCheck(name="p", port=unused_port, host="localhost")) is FAILED


def test_a_name_that_nobody_resolves_is_no_failure(unused_port: int) -> None:
    assert outcome(TcpCheck(name="p", port=1, host="no-such-host.invalid")) is ERROR


def test_no_file_descriptor_left_is_no_failure(silent_port: int, tmp_path: Path) -> None:
    """In a process of its own, whose limit is reached."""
    script = f"""
import asyncio, os, resource
from healer.config import HttpCheck, ListenCheck, TcpCheck
from healer.watchdog.probes import Probes
from tests.watchdog.test_health import UNIT

async def main():
    probes = Probes()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
    for check in (
        TcpCheck(name="p", port={silent_port}),
        HttpCheck(name="p", url="http://127.0.0.1:{silent_port}/"),
        ListenCheck(name="p", port={silent_port}),
    ):
        print((await probes.look(check, "web.service", UNIT))[0])
    os._exit(0)

asyncio.run(main())
"""
    command = [sys.executable, "-u", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["error"] * 3


# Listening sockets


def listen_check(port: int, host: str | None = None) -> ListenCheck:
    return ListenCheck(name="p", port=port, host=host)


def test_listening_is_seen_without_connecting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        assert outcome(listen_check(port)) is OK
        assert outcome(listen_check(port, "127.0.0.1")) is OK
        assert outcome(listen_check(port, "127.0.0.2")) is FAILED
        assert outcome(listen_check(port, "::1")) is FAILED
        with pytest.raises(BlockingIOError):
            server.accept()
    assert outcome(listen_check(port)) is FAILED


def test_a_bound_socket_and_a_client_do_not_listen(unused_port: int, silent_port: int) -> None:
    assert outcome(listen_check(unused_port)) is FAILED
    with socket.create_connection(("127.0.0.1", silent_port)) as client:
        assert outcome(listen_check(client.getsockname()[1])) is FAILED


@pytest.mark.parametrize(
    ("address", "v6_only", "seen"),
    [
        ("0.0.0.0", False, {"127.0.0.1"}),
        ("::", False, {"127.0.0.1", "::1"}),
        ("::", True, {"::1"}),
        ("::1", True, {"::1"}),
        ("::ffff:127.0.0.1", False, {"127.0.0.1"}),
    ],
)
def test_listening_at_all_addresses(address: str, v6_only: bool, seen: set[str]) -> None:
    if ":" in address and not Path("/proc/net/tcp6").exists():
        pytest.skip("the kernel has no IPv6")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        server.bind((address, 0))
        server.listen()
        port = server.getsockname()[1]
        asked = ("127.0.0.1", "::1")
        assert {host for host in asked if outcome(listen_check(port, host)) is OK} == seen
        (listener,) = listeners(port)
        assert listener == Listener(ipaddress.ip_address(address), v6_only)


def test_many_sockets_on_one_port(silent_port: int) -> None:
    servers = []
    for number in range(2, 200):
        server = socket.create_server((f"127.0.0.{number}", silent_port), reuse_port=False)
        servers.append(server)
    assert len(list(listeners(silent_port))) == 199
    assert outcome(listen_check(silent_port, "127.0.0.150")) is OK
    for server in servers:
        server.close()


def test_a_refusal_of_the_kernel_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    """It ends such a dump with an error, as where inet_diag is missing: no socket was told of."""
    monkeypatch.setattr("healer.watchdog.probes.listen.socket.IPPROTO_TCP", 200)
    ((found, why),) = look(listen_check(silent_port))
    assert found is ERROR
    assert "inet_diag" in why


def test_listening_needs_no_privilege(silent_port: int) -> None:
    script = (
        "import os, sys\n"
        "from healer.watchdog.probes.listen import listeners\n"
        "os.geteuid() or os.setresuid(65534, 65534, 65534)\n"
        f"print(len(list(listeners({silent_port}))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
