"""HTTP and TLS checks against real servers and certificates."""

import asyncio
import datetime
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from healer.config import HttpCheck
from healer.watchdog.health import Outcome
from healer.watchdog.probes import Probes
from tests.watchdog.looking import ERROR, FAILED, OK, look, outcome
from tests.watchdog.test_health import UNIT


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
