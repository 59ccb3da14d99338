from pathlib import Path

import pytest

from tests.drift.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    for path in ("etc", "run/systemd/system", "run/systemd/transient"):
        made.path(path).mkdir(parents=True)
    made.activate(made.build("system-1"))
    return made
