"""What is decided becomes a record, and a record becomes a ledger entry.

All of healer's memory is a fold over records: the state that a decision starts from is what
``Decisions.replay`` made of the records before it. So a daemon that comes back after a crash or a
power cut replays the ledger, and stands where it stood.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from healer.events import Instant


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that is known or decided; its types are listed in docs/ledger.md."""

    at: Instant
    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    incident: str | None = None
