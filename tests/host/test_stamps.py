"""What the stamps of PID 1 become."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from healer.events import Ended
from healer.host import stamps

CHECKOUT = Path(__file__).parents[2]
STABLE_MS = 20_000

INVOCATION = "1" * 32
START = """\
uptime=1.00
toplevel=/nix/store/x
unit_dir={directory}
"""
STOP = f"""\
unit=web.service
invocation={INVOCATION}
result=signal
code=killed
status=KILL
start_uptime=1.00
stop_uptime=2.05
memory_peak=
memory_current=
oom_kill=
memory_pressure=
end=1
"""


def test_the_unit_file_is_followed_into_the_store(tmp_path: Path) -> None:
    of_unit, units = tmp_path / "unit-web.service", tmp_path / "system-units"
    both = tmp_path / "stamps"
    for directory in (of_unit, units, both):
        directory.mkdir()

    def unit_file(directory: Path | str) -> str | None:
        name = f"web.service.{INVOCATION}"
        (both / f"{name}.start").write_text(START.format(directory=directory))
        (both / f"{name}.stop").write_text(STOP)
        (ended,) = stamps.read(both, [f"{name}.stop"])
        assert (ended.toplevel, ended.runtime_ms) == ("/nix/store/x", 1050)
        return ended.unit_file

    (of_unit / "web.service").touch()
    (units / "web.service").symlink_to(of_unit / "web.service")
    assert unit_file(units) == str(of_unit / "web.service")
    (of_unit / "web.service").unlink()  # as after a garbage collection
    assert unit_file(units) == str(of_unit / "web.service")
    (units / "web.service").unlink()
    assert unit_file(units) is None
    units.rmdir()
    assert unit_file(units) == str(units / "web.service")
    assert unit_file("") is None


def test_an_unfinished_stamp_is_left_for_later() -> None:
    assert stamps.parse(STOP.removesuffix("end=1\n")) is None


def test_each_change_of_a_quiet_directory_is_seen(tmp_path: Path) -> None:
    names = [f"web.service.{digit * 32}.stop" for digit in "123"]
    assert stamps.stop_stamps(tmp_path / "none") == {}
    for count, name in enumerate(names, start=1):
        (tmp_path / name).touch()
        assert stamps.stop_stamps(tmp_path).keys() == {*names[:count]}
        os.utime(tmp_path, (count, count))  # nothing has happened in it for long
        assert stamps.stop_stamps(tmp_path).keys() == {*names[:count]}
    (tmp_path / names[0]).unlink()
    assert stamps.stop_stamps(tmp_path).keys() == {*names[1:]}


class Pid1:
    """What PID 1 runs around each invocation: the stamps, with nothing on their PATH.

    ``job`` is what it has to do with the unit.
    """

    def __init__(self, runtime_dir: Path) -> None:
        self.directory = runtime_dir
        self.invocations = 0
        systemctl = runtime_dir / "systemctl"
        systemctl.write_text(
            f'#!/bin/sh\nwhile read -r job; do echo "$job"; done <{runtime_dir}/job'
        )
        systemctl.chmod(0o755)
        for name in ("stamps", "last"):
            (runtime_dir / name).mkdir()
        for name in ("stamp-start.sh", "stamp-stop.sh"):
            text = (CHECKOUT / "nix" / name).read_text()
            (runtime_dir / name).write_text(text.replace("/run/healer/", f"{runtime_dir}/"))

    def stamp(self, name: str, *arguments: str, **environment: str) -> None:
        invocation = {"PATH": "/nonexistent", "INVOCATION_ID": f"{self.invocations:032x}"}
        done = subprocess.run(
            ["/bin/sh", self.directory / name, "web.service", *arguments],
            env={**invocation, **environment}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == done.stderr == ""

    def run(
        self,
        runtime_ms: int | None,
        result: str,
        code: str,
        status: str,
        *,
        job: str = "",
    ) -> Ended:
        """Have an invocation last so long and end so; return what is stamped.

        It ends before it was up where ``runtime_ms`` is None.
        """
        self.invocations += 1
        name = f"web.service.{self.invocations:032x}"
        if runtime_ms is not None:
            self.stamp("stamp-start.sh")
            start = self.directory / "stamps" / f"{name}.start"
            began = float(Path("/proc/uptime").read_text().split()[0]) - runtime_ms / 1000
            start.write_text(re.sub(r"uptime=\S+", f"uptime={began:.2f}", start.read_text()))
        (self.directory / "job").write_text(job)
        self.stamp(
            "stamp-stop.sh", str(STABLE_MS), str(self.directory),
            SERVICE_RESULT=result, EXIT_CODE=code, EXIT_STATUS=status,
        )  # fmt: skip
        ended = stamps.parse((self.directory / "stamps" / f"{name}.stop").read_text())
        assert ended is not None
        return ended


def test_a_stamp_takes_nothing_but_the_shell(tmp_path: Path) -> None:
    ended = Pid1(tmp_path).run(1500, "signal", "killed", "SEGV")
    assert (ended.unit, ended.invocation) == ("web.service", f"{1:032x}")
    assert (ended.result, ended.code, ended.status) == ("signal", "killed", "SEGV")
    assert ended.runtime_ms is not None
    assert ended.runtime_ms >= 1490
    last = dict(
        line.split("=", 1) for line in (tmp_path / "last/web.service").read_text().split("\n")[:-1]
    )
    assert (last["in_a_row"], last["class"], last["status"]) == ("1", "signal", "SEGV")


# Not so near to the limit that it matters how long the stamps themselves take on a busy machine.
RUNTIMES_MS = st.integers(0, STABLE_MS - 10_000) | st.integers(STABLE_MS + 1_000, 2 * STABLE_MS)
ENDS = st.sampled_from(
    [("signal", "killed", "KILL"), ("exit-code", "exited", "1"), ("success", "exited", "0")]
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(st.tuples(ENDS, RUNTIMES_MS), max_size=12))
def test_crashes_in_a_row_are_counted_until_a_stable_run(
    tmp_path: Path, history: list[tuple[tuple[str, str, str], int]]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        pid_1, row = Pid1(Path(directory)), 0
        for (result, code, status), runtime_ms in history:
            row = (row if runtime_ms < STABLE_MS else 0) + 1 if result != "success" else 0
            assert pid_1.run(runtime_ms, result, code, status).in_a_row == row


CLEAN, FAILED = ("success", "exited", "0"), ("exit-code", "exited", "1")
STARTS, STOPS = "12 web.service start running\n", "12 web.service stop  running\n"


@pytest.mark.parametrize(
    ("runtime_ms", "end", "job", "asked"),
    [
        (None, FAILED, STOPS, True),
        (None, FAILED, STOPS.replace("stop ", "restart"), True),
        (None, FAILED, STARTS, False),
        (None, FAILED, "", False),
        # It matters to no crash, or the journal tells.
        (None, CLEAN, STOPS, None),
        (1000, FAILED, STOPS, None),
    ],
)
def test_pid_1_is_asked_who_ended_a_start(
    tmp_path: Path, runtime_ms: int | None, end: tuple[str, str, str], job: str, asked: bool | None
) -> None:
    ended = Pid1(tmp_path).run(runtime_ms, *end, job=job)
    assert ended.asked is asked
    assert ended.in_a_row == (0 if asked or end == CLEAN else 1)
