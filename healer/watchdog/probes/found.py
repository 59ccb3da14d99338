"""What a look found, and what an error on the way to it means."""

import ssl

import h11

from healer.errors import HealerError
from healer.watchdog.health import Outcome

Found = tuple[Outcome, str]
"""An outcome, and why."""

# The agent's own doing, where it was the agent that was asked.
REFUSED = (ConnectionError, TimeoutError, ssl.SSLError, h11.RemoteProtocolError)
OWN_ERRORS = (OSError, ValueError, HealerError, h11.LocalProtocolError)


def explain(error: Exception, timeout_sec: float) -> Found:
    """Say what one of these errors means; what the agent did not do is its failure."""
    if isinstance(error, REFUSED):
        return Outcome.FAILED, str(error) or f"no answer within {timeout_sec:g} s"
    return Outcome.ERROR, str(error) or "the check could not be made"
