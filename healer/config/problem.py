"""One thing that is wrong with a configuration."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from healer.errors import ConfigError

# How much of a hostile text a message repeats, in characters.
SHOWN = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, where, and how to mend it.

    `option` is the path of the option as the file spells it (`agents.worker.restart.delaySec`), and
    is empty where the file as a whole is meant.
    """

    option: str
    wrong: str
    mend: str

    def __str__(self) -> str:
        return (
            f"{self.option}: {self.wrong}; {self.mend}"
            if self.option
            else f"{self.wrong}; {self.mend}"
        )


def option_path(path: str, option: str) -> str:
    """Extend the path of an option by one name, quoted where Nix would need it."""
    plain = option.isascii() and option.replace("-", "_").isidentifier()
    name = option if plain and len(option) <= SHOWN else json.dumps(shortened(option))
    return f"{path}.{name}" if path else name


def shortened(text: str) -> str:
    """Cut a text that somebody else chose the length of, for a message."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


class InvalidConfigError(ConfigError):
    """A configuration was refused; holds everything that is wrong with it."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        if len(problems) == 1:
            message = f"{path}: {problems[0]}"
        else:
            lines = "".join(f"\n  {problem}" for problem in problems)
            message = f"{path}: {len(problems)} errors:{lines}"
        super().__init__(message)
