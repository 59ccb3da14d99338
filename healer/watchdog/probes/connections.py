"""Plain TCP connections, many at once: `tcp` checks, and `http` checks that ask for the status.

Each is driven as far as it goes without waiting; on one host that is often to its end. The rest
are looked at together, a moment later, so that a hundred answers wake healer once.
"""

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from healer.watchdog.probes.found import OWN_ERRORS, Found, explain

# What is still open is looked at after the first pause, and then more and more seldom.
_FIRST_PAUSE_SEC = 0.03
_LAST_PAUSE_SEC = 0.1
_CHUNK = 65_536
_PENDING = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})


@dataclass(slots=True, eq=False)
class Exchange:
    """Connect, send ``request``, and read on until ``judge`` has found something.

    ``address`` is an IP address and a port. ``judge`` is given the answer so far and whether that
    is all of it; it returns None while it needs more, and raises OSError where it is no answer.
    """

    family: socket.AddressFamily
    address: tuple[str, int]
    timeout_sec: float
    request: bytes
    judge: Callable[[bytes, bool], Found | None]
    answer: bytes = b""
    connected: bool = False

    def advance(self, opened: socket.socket, *, read: bool = True) -> Found | None:
        """Go as far as that goes without waiting; None when it is not to the end.

        Without ``read`` an answer is not looked for: who has just been asked has none yet.
        """
        try:
            self.connected = self.connected or self._connect(opened)
            if not self.connected:
                return None
            while self.request:
                self.request = self.request[opened.send(self.request) :]
            ended = False
            while (found := self.judge(self.answer, ended)) is None and read:
                data = opened.recv(_CHUNK)
                ended = not data
                self.answer += data
        except BlockingIOError:
            return None
        except OWN_ERRORS as error:
            return explain(error, self.timeout_sec)
        return found

    def _connect(self, opened: socket.socket) -> bool:
        code = opened.connect_ex(self.address)
        if code in _PENDING:
            # On one host the other side has answered by now: then this call says how.
            code = opened.connect_ex(self.address)
        if code in _PENDING:
            return False
        if code not in {0, errno.EISCONN}:
            raise OSError(code, os.strerror(code))
        return True


@dataclass(slots=True, eq=False)
class _Open:
    """An exchange that waits for the other side, until ``deadline`` on the loop's clock."""

    exchange: Exchange
    socket: socket.socket
    deadline: float
    future: "asyncio.Future[Found]"


class Connections:
    """The exchanges that are under way."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._open: dict[int, _Open] = {}
        # Not watched by epoll(7) yet: most are over by the first look, and it costs a tenth.
        self._new: list[_Open] = []
        self._pause_sec = _FIRST_PAUSE_SEC
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Hang up on everybody."""
        for each in [*self._open.values()]:
            self._end(each, None)
        if self._timer is not None:
            self._timer.cancel()
        self._epoll.close()

    def begin(self, exchange: Exchange) -> "Found | asyncio.Future[Found]":
        """Begin an exchange; return what it found, or a future where that has to be waited for.

        Raises OSError where there is no socket to be had.
        """
        opened = socket.socket(exchange.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        found = exchange.advance(opened, read=False)
        if found is not None:
            opened.close()
            return found
        loop = asyncio.get_running_loop()
        deadline = loop.time() + exchange.timeout_sec
        each = _Open(exchange, opened, deadline, loop.create_future())
        self._open[opened.fileno()] = each
        self._new.append(each)
        if self._timer is None or self._pause_sec > _FIRST_PAUSE_SEC:
            self._look_after(_FIRST_PAUSE_SEC)
        return each.future

    def _look_after(self, pause_sec: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pause_sec = pause_sec
        self._timer = asyncio.get_running_loop().call_later(pause_sec, self._look)

    def _look(self) -> None:
        """See what became of the exchanges; an answer in time counts even if it is seen late."""
        self._timer = None
        for number, _ in self._epoll.poll(0, len(self._open) or 1):
            self._advance(self._open[number])
        new, self._new = self._new, []
        for each in new:
            if not self._advance(each):
                events = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
                self._epoll.register(each.socket, events)
        now = asyncio.get_running_loop().time()
        for each in [*self._open.values()]:
            if each.deadline <= now:
                self._end(each, explain(TimeoutError(), each.exchange.timeout_sec))
        if self._open:
            self._look_after(min(2 * self._pause_sec, _LAST_PAUSE_SEC))

    def _advance(self, each: _Open) -> bool:
        """Whether that was to the end."""
        found = each.exchange.advance(each.socket)
        if found is not None:
            self._end(each, found)
        return found is not None

    def _end(self, each: _Open, found: Found | None) -> None:
        del self._open[each.socket.fileno()]
        each.socket.close()  # epoll(7) forgets it then
        if found is None:
            each.future.cancel()
        elif not each.future.cancelled():
            each.future.set_result(found)
