"""The control socket: what a person asks of the daemon, and who that was.

Policy is declared in Nix; here somebody holds an agent back, lets it go, restarts it, has its
backoff begin anew, or decides on a deployment. The kernel says who is at the other end
(SO_PEERCRED, unix(7)); root and the group `healer` may ask. What is granted becomes an intent,
which is recorded before anything is done; a refusal is told to whoever asked, and leaves no trace.
"""

import asyncio
import logging
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from healer.errors import HostUnavailableError, RefusedError

log = logging.getLogger(__name__)

NAME = "control.sock"
# Pause after the socket could not be made.
_RETRY_SEC = 1.0
_LIMIT = 64 * 1024
_UCRED = struct.Struct("3i")

# As long as a hold or a trial may last: thirty days, in seconds.
_Duration = Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)]

Verb = Literal["hold", "release", "restart", "reset"]


class AgentRequest(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Do this to an agent; ``ttl_sec`` is how long a hold lasts at most.

    ``sudo_user`` is who became root to ask; it is believed of root only.
    """

    verb: Verb
    agent: str
    ttl_sec: _Duration | None = None
    sudo_user: str | None = None


class SafeSwitchRequest(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Do this with a deployment: `run` it on trial, `confirm` or `rollback` the one that runs…

    ``confirm_sec`` is how long a trial waits, ``grant`` says that root asks (safeswitch/grants.py).
    """

    verb: Literal["run", "confirm", "rollback", "condemn", "forgive"]
    toplevel: str | None = None
    confirm_sec: _Duration | None = None
    grant: str | None = None
    sudo_user: str | None = None


Request = AgentRequest | SafeSwitchRequest


class Answer(msgspec.Struct, frozen=True):
    """What became of a request."""

    ok: bool
    detail: str


Handler = Callable[[Request, str], Awaitable[Answer]]


async def serve(path: Path, handle: Handler) -> None:
    """Answer requests until cancelled; ``handle`` is told the request and who asks.

    healer heals all the same where there is no making a socket: agents can fill /run.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = msgspec.json.decode(await reader.readline(), type=Request)
            reply = await handle(request, _who(writer.get_extra_info("socket"), request))
        except (msgspec.MsgspecError, ValueError) as error:
            reply = Answer(False, f"not a request: {error}")
        writer.write(msgspec.json.encode(reply) + b"\n")
        writer.close()

    told = False
    while True:
        try:
            path.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(answer, path, limit=_LIMIT)
            path.chmod(0o660)
            break
        except OSError as error:
            if not told:
                log.warning("nobody can ask healer for anything: %s: %s; trying again", path, error)
                told = True
            await asyncio.sleep(_RETRY_SEC)
    async with server:
        await server.serve_forever()


def ask(path: Path, request: Request) -> Answer:
    """Send a request to the daemon and wait for its answer.

    Raises RefusedError without the right to ask, HostUnavailableError when nobody answers.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(120)
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(request) + b"\n")
            with connection.makefile("rb") as stream:
                return msgspec.json.decode(stream.readline(_LIMIT), type=Answer)
    except PermissionError as error:
        raise RefusedError("only root and the group healer may ask this") from error
    except (OSError, msgspec.MsgspecError) as error:
        raise HostUnavailableError(
            f"the daemon does not answer at {path} ({error}); look at: systemctl status healer"
        ) from error


def _who(connection: socket.socket, request: Request) -> str:
    """Name who asks: the user at the other end, and whom root says it acts for."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    if uid == 0 and request.sudo_user:
        return f"{request.sudo_user} (by sudo)"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def sudo_user() -> str | None:
    """Return who became root by sudo(8) to run this command."""
    return os.environ.get("SUDO_USER")
