"""Regular expressions on what agents say, in a process of their own.

Python's can take time without end on a text that suits them, and hold up every thread meanwhile.
Here that costs the check an error, and the process its life; the daemon goes on.
"""

import asyncio
import json
import sys
from collections.abc import Sequence

_PROGRAM = """
import json, re, sys
for line in sys.stdin.buffer:
    pattern, texts = json.loads(line)
    search = re.compile(pattern).search
    print(json.dumps(next((i for i, t in enumerate(texts) if search(t)), None)), flush=True)
"""
_TIMEOUT_SEC = 1.0


class Patterns:
    """One process, begun when it is first needed, that answers one question at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def first(self, pattern: str, texts: Sequence[str]) -> int | None:
        """Return the index of the first text in which the pattern is found; None without one.

        Raises ValueError when that takes too long.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(_TIMEOUT_SEC):
                    answer = await self._ask(json.dumps([pattern, list(texts)]).encode() + b"\n")
            except BaseException as error:
                # Its answer to this question must not pass for one to the next.
                await self._end()
                if isinstance(error, TimeoutError):
                    raise ValueError(
                        f"the pattern {pattern!r} took longer than {_TIMEOUT_SEC:g} s; "
                        "write it without repetitions within repetitions"
                    ) from None
                raise
        found: int | None = json.loads(answer)
        return found

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _ask(self, question: bytes) -> bytes:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _PROGRAM),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise ValueError("the process for patterns has no pipes")
        process.stdin.write(question)
        await process.stdin.drain()
        answer = await process.stdout.readline()
        if not answer:
            raise ValueError("the process for patterns ended")
        return answer

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
