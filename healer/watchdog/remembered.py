"""What was recorded of late, on the whole host, so that nothing is recorded twice. Pure."""

import sys
from collections import OrderedDict

# Evidence is told again from the journal's cursor on, which is stored every ten seconds while the
# ledger can be written. This is half an hour of a host that crashes without a pause, and 8 MB.
_MOST = 32_768


class Remembered:
    """The last runs of which something was recorded: each a unit, and its InvocationID.

    The latter alone does not do: an agent can have its own stamps bear that of another.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __contains__(self, run: tuple[str, str]) -> bool:
        return run in self._runs

    def add(self, run: tuple[str, str]) -> None:
        """Remember one more, and forget the oldest where they are too many."""
        unit, invocation = run
        self._runs[sys.intern(unit), invocation] = None
        if len(self._runs) > _MOST:
            self._runs.popitem(last=False)
