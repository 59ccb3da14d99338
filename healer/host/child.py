"""A Python program in a process of its own that answers one question at a time, a line each.

For what would cost the daemon its memory, or its life.
"""

import asyncio
import sys
from contextlib import suppress


class Child:
    """The process, begun when it is first needed.

    ``program`` is Python's source; it finds ``arguments`` in ``sys.argv``, and writes one line to
    its standard output for each that it reads.
    """

    def __init__(self, program: str, *arguments: str) -> None:
        self._command = (sys.executable, "-I", "-S", "-c", program, *arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def ask(self, question: bytes, timeout_sec: float) -> bytes:
        """Return the answer; TimeoutError when that takes too long, EOFError when there is none.

        The process does not outlive a failure: its answer must not pass for one to the next
        question.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(timeout_sec):
                    return await self._ask(question)
            except BaseException:
                await self._end()
                raise

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _ask(self, question: bytes) -> bytes:
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe
            )
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise EOFError("the process has no pipes")
        process.stdin.write(question + b"\n")
        with suppress(ConnectionError):  # it has ended, and so has its output
            await process.stdin.drain()
        answer = await process.stdout.readline()
        if not answer:
            raise EOFError("the process ended")
        return answer

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
