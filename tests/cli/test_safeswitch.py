"""`healer safeswitch` as a person types it, without a daemon."""

from pathlib import Path

import msgspec
import pytest

from healer import control
from healer.cli import main
from healer.cli.safeswitch import resolve
from healer.errors import RefusedError


def test_paths_are_followed_to_the_store(tmp_path: Path) -> None:
    gone = f"/nix/store/{'a' * 32}-nixos-system-x"
    link = tmp_path / "result"
    link.symlink_to(gone)
    assert resolve(str(link)) == resolve(gone) == gone
    with pytest.raises(RefusedError, match="does not exist"):
        resolve(str(tmp_path / "none"))
    with pytest.raises(RefusedError, match="not a system in /nix/store"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["status"], 69, "healer is not running"),
        (["confirm"], 69, "the daemon does not answer"),
        (["rollback", "--to", "/no/such"], 77, "does not exist"),
        (["condemn", "/etc"], 77, "not a system in /nix/store"),
    ],
)
def test_without_a_daemon(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    verb, *rest = arguments
    assert main(["safeswitch", verb, "--runtime-dir", str(tmp_path), *rest]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("time", ["0s", "0", "40d", "soon"])
def test_a_time_that_is_none(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["safeswitch", "run", "/nix/store/x", "--confirm-within", time])
    assert caught.value.code == 2
    assert "90s" in capsys.readouterr().err


@pytest.mark.parametrize(
    "request_for",
    [
        '{{"type":"SafeSwitchRequest","verb":"run","confirm_sec":{}}}',
        '{{"type":"AgentRequest","verb":"hold","agent":"worker","ttl_sec":{}}}',
    ],
)
def test_a_request_with_a_time_out_of_range_is_none(request_for: str) -> None:
    msgspec.json.decode(request_for.format(60), type=control.Request)
    for seconds in (0, -1, 31 * 86_400):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(request_for.format(seconds), type=control.Request)
