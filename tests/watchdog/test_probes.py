"""Health checks against real servers, sockets, certificates, processes and files."""

import asyncio
import datetime
import http.server
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from healer.config import (
    CommandCheck,
    FileCheck,
    HealthCheck,
    HttpCheck,
    ListenCheck,
    MemoryCheck,
    TcpCheck,
)
from healer.watchdog.health import Outcome
from healer.watchdog.probes import Probes
from healer.watchdog.probes.listen import Listener, listeners
from healer.watchdog.probes.memory import cgroup_of, look_at_memory
from healer.watchdog.probes.patterns import Patterns
from tests.machine.outcome import retry
from tests.watchdog.test_health import UNIT

OK, FAILED, ERROR = Outcome.OK, Outcome.FAILED, Outcome.ERROR


def look(*checks: HealthCheck, main_pid: int = 0) -> list[tuple[Outcome, str]]:
    """Make these checks, one after the other."""

    async def run() -> list[tuple[Outcome, str]]:
        probes = Probes()
        state = replace(UNIT, main_pid=main_pid)
        try:
            return [await probes.look(check, "web.service", state) for check in checks]
        finally:
            await probes.close()

    return asyncio.run(run())


def outcome(check: HealthCheck, main_pid: int = 0) -> Outcome:
    """Make one check."""
    ((found, why),) = look(check, main_pid=main_pid)
    assert why
    return found


# Servers


class Handler(http.server.BaseHTTPRequestHandler):
    released: threading.Event

    def do_GET(self) -> None:
        if self.path == "/hang":
            self.released.wait()
        if self.path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of i")
            return
        if self.path == "/garbage":
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            return
        body = b'{"status": "ok", "workers": 3}' if self.path != "/hostile" else b"a" * 40
        self.send_response(int(self.path[1:]) if self.path[1:].isdigit() else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[int]:
    """Serve HTTP on a port of 127.0.0.1, with TLS if there is a certificate (and key) for it."""

    class Answers(Handler):
        released = threading.Event()

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that refuses the certificate

    server = Server(("127.0.0.1", 0), Answers)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # Else a client that says nothing would hold up the others in accept().
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        Answers.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as number:
        yield number


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that is taken, and that nothing listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def http_check(port: int, path: str = "/", **options: Any) -> HttpCheck:
    return HttpCheck(name="web", url=f"http://127.0.0.1:{port}{path}", **options)


@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        ("/", {}, OK),
        ("/500", {}, FAILED),
        ("/204", {"expect_status": 204}, OK),
        ("/301", {}, FAILED),
        ("/", {"body_contains": '"status": "ok"'}, OK),
        ("/", {"body_contains": "failing"}, FAILED),
        ("/", {"body_matches": r'"workers": [1-9]\d*'}, OK),
        ("/", {"body_matches": r'"workers": 0'}, FAILED),
        ("/cut", {}, OK),
        ("/cut", {"body_contains": "half"}, FAILED),
        ("/garbage", {}, FAILED),
        ("/hang", {"timeout_sec": 0.2}, FAILED),
    ],
)
def test_http(port: int, path: str, options: dict[str, Any], expected: Outcome) -> None:
    assert outcome(http_check(port, path, **options)) is expected


async def answered(parts: list[bytes], **options: Any) -> tuple[Outcome, str]:
    """Answer a check with these parts, some time apart, and close the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.03)
        writer.close()

    probes = Probes()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        return await probes.look(http_check(port, **options), "web.service", UNIT)
    finally:
        server.close()
        await probes.close()


@pytest.mark.parametrize("options", [{}, {"body_contains": ""}], ids=["status", "body"])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([b"HTTP/1.1 200 OK\r\n\r\n"], OK),
        ([b"HTTP/1.0 200\r\nA: b\r\n\r\n"], OK),
        ([b"HTT", b"P/1.1 2", b"00 OK\r\nA: b\r", b"\n\r\n"], OK),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"], OK),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 503 No\r\n\r\n"], FAILED),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], FAILED),
        ([b"HTTP/1.1 200 OK\r\nA: b\r\n"], FAILED),
        ([b"HTTP/1.1 200 OK\r\nA: ", *[b"b" * 10_000] * 7], FAILED),
        ([b"HTTP/2 200 OK\r\n\r\n"], FAILED),
        ([], FAILED),
    ],
)
def test_answers(parts: list[bytes], expected: Outcome, options: dict[str, Any]) -> None:
    found, why = asyncio.run(answered(parts, **options))
    assert (found, bool(why)) == (expected, True)


def test_many_slow_answers_at_once_are_all_heard() -> None:
    async def ask() -> list[tuple[Outcome, str]]:
        parts = [b"HTTP/1.1 200 OK\r\n", b"\r\n"]
        return await asyncio.gather(*(answered(parts) for _ in range(100)))

    assert {found for found, _ in asyncio.run(ask())} == {OK}


def test_http_of_a_server_that_is_not_there(unused_port: int, silent_port: int) -> None:
    assert outcome(http_check(unused_port)) is FAILED
    assert outcome(http_check(silent_port, timeout_sec=0.2)) is FAILED


def test_a_body_on_which_a_pattern_takes_for_ever_is_no_failure(port: int) -> None:
    endless = http_check(port, "/hostile", body_matches="(a+)+$b")
    fine = http_check(port, body_matches="workers")
    (first, why), (second, _) = look(endless, fine)
    assert (first, second) == (ERROR, OK)
    assert "took longer" in why


# TLS


def make_certificate(path: Path, *, valid: bool = True) -> Path:
    """Write a self-signed certificate for 127.0.0.1 with its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=1 if valid else -1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    return path


def https(port: int, host: str = "127.0.0.1", **options: Any) -> HttpCheck:
    return HttpCheck(name="web", url=f"https://{host}:{port}/", **options)


def test_tls_is_verified_unless_asked_for_otherwise(tmp_path: Path, silent_port: int) -> None:
    certificate = make_certificate(tmp_path / "server.pem")
    other = make_certificate(tmp_path / "other.pem")
    with serving(certificate) as port:
        assert outcome(https(port, ca_file=str(certificate))) is OK
        assert outcome(https(port, insecure=True)) is OK
        assert outcome(https(port, insecure=True, body_contains="ok")) is OK
        ((found, why),) = look(https(port))
        assert found is FAILED
        assert "certificate verify failed" in why
        assert outcome(https(port, ca_file=str(other))) is FAILED
        # It is a certificate for the address, not for the name.
        assert outcome(https(port, "localhost", ca_file=str(certificate))) is FAILED
    assert outcome(https(silent_port, insecure=True, timeout_sec=0.2)) is FAILED


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "server.pem", valid=False)
    with serving(certificate) as port:
        assert outcome(https(port, ca_file=str(certificate))) is FAILED


def test_a_useless_ca_file_is_the_checks_own_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    certificate = make_certificate(tmp_path / "server.pem")
    with serving(certificate) as port:
        assert outcome(https(port, ca_file=str(empty))) is ERROR
        assert outcome(https(port, ca_file=str(tmp_path / "none.pem"))) is ERROR
        # Once it is put right, the new one counts.
        empty.write_bytes(certificate.read_bytes())
        assert outcome(https(port, ca_file=str(empty))) is OK


def test_tls_spoken_to_a_server_without(port: int) -> None:
    assert outcome(https(port)) is FAILED


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


# Commands


def command_check(*command: str, **options: Any) -> CommandCheck:
    return CommandCheck(name="c", command=command, **options)


def test_commands(tmp_path: Path) -> None:
    assert outcome(command_check("/bin/true")) is OK
    assert outcome(command_check("/bin/sh", "-c", "exit 3")) is FAILED
    assert outcome(command_check("/no/such/program")) is ERROR
    (tmp_path / "data").write_text("")
    assert outcome(command_check(str(tmp_path / "data"))) is ERROR


def test_a_command_does_not_see_healers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    assert outcome(command_check("/bin/sh", "-c", 'test -z "$NOTIFY_SOCKET"')) is OK


def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $$ $! > {pids}; wait"
    assert outcome(command_check("/bin/sh", "-c", script, timeout_sec=1)) is FAILED
    # A signal is sent before it has killed.
    retry(lambda _last: all(map(is_dead, pids.read_text().split())), interval=0.05)


def is_dead(pid: str) -> bool:
    """Whether a process is gone, or would be if somebody reaped it: the grandchild has nobody."""
    try:
        stat = (Path("/proc") / pid / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(") ")[2].startswith("Z")


# Memory


def test_memory(tmp_path: Path) -> None:
    process, cgroups = tmp_path / "proc" / "7", tmp_path / "cgroups"
    process.mkdir(parents=True)
    (process / "cgroup").write_text("0::/system.slice/web.service\n")
    (process / "status").write_text("Name:\ta\nVmRSS:\t    4097 kB\n")
    check = MemoryCheck(name="m", max_bytes=4 * 1024**2)

    def found() -> Outcome:
        return look_at_memory(check, "web.service", 7, tmp_path / "proc", cgroups)[0]

    assert found() is FAILED
    (process / "status").write_text("Name:\ta\nVmRSS:\t    4096 kB\n")
    assert found() is OK
    current = cgroups / "system.slice" / "web.service" / "memory.current"
    current.parent.mkdir(parents=True)
    current.write_text("4194305\n")
    assert found() is FAILED
    current.write_text("4194304\n")
    assert found() is OK


def test_memory_of_what_is_no_process_of_the_unit() -> None:
    assert outcome(MemoryCheck(name="m", max_bytes=1), main_pid=os.getpid()) is ERROR
    assert outcome(MemoryCheck(name="m", max_bytes=1)) is ERROR


def test_a_process_that_is_gone_is_no_failure() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    assert outcome(MemoryCheck(name="m", max_bytes=1), main_pid=process.pid) is ERROR


@pytest.mark.parametrize(
    ("membership", "expected"),
    [
        ("0::/system.slice/web.service\n", "system.slice/web.service"),
        ("1:name=systemd:/x\n0::/a.slice/web.service/inner/b\n", "a.slice/web.service"),
        ("0::/system.slice/other.service\n", None),
        ("0::/\n", None),
        ("1:memory:/system.slice/web.service\n", None),
    ],
)
def test_the_cgroup_of_a_unit(membership: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"no cgroup of web\.service"):
            cgroup_of("web.service", membership)
    else:
        assert cgroup_of("web.service", membership) == expected


# Files


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    check = FileCheck(name="f", path=str(path), max_age_sec=60)
    assert outcome(check) is FAILED
    path.write_text("")
    assert outcome(check) is OK
    now = path.stat().st_mtime
    for written, expected in ((now - 61, FAILED), (now - 30, OK), (now + 3600, OK)):
        os.utime(path, (written, written))
        assert outcome(check) is expected
    assert outcome(FileCheck(name="f", path=f"{path}/x", max_age_sec=60)) is ERROR


# Patterns


def ask(questions: Callable[[Patterns], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        patterns = Patterns()
        try:
            return await questions(patterns)
        finally:
            await patterns.close()

    return asyncio.run(run())


def test_patterns_are_looked_for_in_turn() -> None:
    async def questions(patterns: Patterns) -> list[int | None]:
        texts = ["one", "tw\no", "thr\u00e9e \ud800", "x" * 1_000_000 + "end"]
        looked_for = ["n", r"^o$", r"(?m)^o$", "\u00e9", "end$", "four"]
        return await asyncio.gather(*(patterns.first(each, texts) for each in looked_for))

    assert ask(questions) == [0, None, 1, 2, 3, None]


def test_an_endless_pattern_costs_only_its_question() -> None:
    async def questions(patterns: Patterns) -> tuple[object, object]:
        endless = patterns.first("(a+)+$", ["a" * 50 + "b"])
        after = patterns.first("b", ["a", "b"])
        return await asyncio.gather(endless, after, return_exceptions=True)

    first, second = ask(questions)
    assert isinstance(first, ValueError)
    assert second == 1


def test_a_question_that_is_given_up_is_not_answered_to_the_next() -> None:
    async def questions(patterns: Patterns) -> int | None:
        assert await patterns.first("a", ["a"]) == 0
        given_up = asyncio.ensure_future(patterns.first("(a+)+$", ["a" * 50 + "b"]))
        # It has its turn once it was begun: the lock is free.
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        return await patterns.first("b", ["a", "b"])

    assert ask(questions) == 1
