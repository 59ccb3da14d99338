"""What was recorded of late, on the whole host, so that nothing is recorded twice. Pure."""

from collections import OrderedDict

# Evidence is told again from the journal's cursor on, which is stored every ten seconds while the
# ledger can be written. This is an hour of a host that crashes without a pause, and some 10 MB.
_MOST = 65_536


class Remembered:
    """The last invocations of which something was recorded (systemd.exec(5), $INVOCATION_ID)."""

    def __init__(self) -> None:
        self._invocations: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, invocation: object) -> bool:
        return invocation in self._invocations

    def add(self, invocation: str) -> None:
        """Remember one more, and forget the oldest where they are too many."""
        self._invocations[invocation] = None
        if len(self._invocations) > _MOST:
            self._invocations.popitem(last=False)
