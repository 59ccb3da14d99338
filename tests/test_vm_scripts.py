"""The scripts of vm-tests/ on the local machine: the same files that NixOS's driver gets."""

from pathlib import Path

import pytest

from tests.conftest import Boot
from tests.machine.script import run_script

VM_TESTS = Path(__file__).parent.parent / "vm-tests"


@pytest.mark.slow_when_emulated
@pytest.mark.parametrize("script", sorted(VM_TESTS.glob("*.py")), ids=lambda path: path.stem)
def test_vm_script(boot: Boot, script: Path) -> None:
    system = script.with_name(f"{script.stem}-system.nix").read_text()
    run_script(script, [boot(system=system)])
