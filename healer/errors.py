"""What can go wrong in a way that a person has to mend, and the exit code of each.

The codes are those of sysexits.h(3head), so that systemd and people know them. They are listed in
docs/exit-codes.md.
"""

import os


class HealerError(Exception):
    """One clear message: what is wrong, where, and how to mend it."""

    exit_code = 1


class ConfigError(HealerError):
    """The rendered configuration is missing, unreadable or wrong."""

    exit_code = os.EX_CONFIG


class LedgerError(HealerError):
    """The ledger cannot be opened, or what is in it contradicts itself."""

    exit_code = os.EX_DATAERR


class LedgerIOError(HealerError):
    """A directory or disk does not let healer write: the ledger's, or that of root's helper."""

    exit_code = os.EX_IOERR


class AlreadyRunningError(HealerError):
    """Another process holds the ledger: a second daemon beside the first."""

    exit_code = os.EX_TEMPFAIL


class HostUnavailableError(HealerError):
    """A service of the host that healer needs (D-Bus, journald, Nix) does not answer."""

    exit_code = os.EX_UNAVAILABLE


class RefusedError(HealerError):
    """A request that was understood and is not allowed, or cannot be done safely."""

    exit_code = os.EX_NOPERM
