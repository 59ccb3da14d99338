"""What the demonstration says when something did not happen."""

import pytest

from tests.machine import demo
from tests.machine.container import ContainerMachine
from tests.machine.outcome import MachineError, RequestedAssertionError


@pytest.mark.machine  # it is not booted, but its root file system is built
@pytest.mark.parametrize("error", [MachineError("no room"), RequestedAssertionError("timed out")])
def test_what_did_not_happen_is_told_with_the_journal(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def does_not_boot(_: ContainerMachine) -> None:
        raise error

    monkeypatch.setattr(demo, "choose", lambda: (ContainerMachine, "a container"))
    monkeypatch.setattr(ContainerMachine, "start", does_not_boot)
    assert demo.main() == 1
    said = capsys.readouterr().out
    assert f"FAILED in step [1]: {error}" in said
    assert "The machine's journal:" in said
    assert "Everything happened" not in said
