"""Regular expressions on what agents say, in a process of their own.

Python's can take time without end on a text that suits them, and hold up every thread meanwhile.
Here that costs the check an error, and the process its life; the daemon goes on.
"""

import json
from collections.abc import Sequence

from healer.host.child import Child

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
        self._child = Child(_PROGRAM)

    async def first(self, pattern: str, texts: Sequence[str]) -> int | None:
        """Return the index of the first text in which the pattern is found; None without one.

        Raises ValueError when that takes too long.
        """
        question = json.dumps([pattern, list(texts)]).encode()
        try:
            answer = await self._child.ask(question, _TIMEOUT_SEC)
        except TimeoutError:
            raise ValueError(
                f"the pattern {pattern!r} took longer than {_TIMEOUT_SEC:g} s; "
                "write it without repetitions within repetitions"
            ) from None
        except EOFError as error:
            raise ValueError(f"the pattern {pattern!r} was not tried: {error}") from None
        found: int | None = json.loads(answer)
        return found

    async def close(self) -> None:
        """End the process."""
        await self._child.close()
