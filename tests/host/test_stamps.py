"""What the stamps of PID 1 become."""

import os
from pathlib import Path

from healer.host import stamps

STOP = """\
unit=web.service
invocation=11111111111111111111111111111111
boot=0-1
result=signal
code=killed
status=KILL
start_uptime=1.00
stop_uptime=2.05
toplevel=/nix/store/x
unit_dir={directory}
memory_peak=
memory_current=
oom_kill=
memory_pressure=
end=1
"""


def unit_file(directory: Path | str) -> str | None:
    ended = stamps.parse(STOP.format(directory=directory))
    assert ended is not None
    return ended.unit_file


def test_the_unit_file_is_followed_into_the_store(tmp_path: Path) -> None:
    of_unit, units = tmp_path / "unit-web.service", tmp_path / "system-units"
    of_unit.mkdir()
    units.mkdir()
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
