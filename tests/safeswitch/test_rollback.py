"""Root's steps of a rollback, on real files: what cannot be written, and what somebody staged."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from healer.config import Agent
from healer.errors import RefusedError
from healer.host import bootloader, clock, hooks, known_good, space
from healer.safeswitch import rollback
from tests.machine.outcome import retry
from tests.safeswitch.tree import Tree, host


@contextmanager
def bad_after_good(path: Path, kernel: str = "6.12", **options: Any) -> Iterator[Tree]:
    """A host that runs and boots the bad system, after a known-good one of this kernel."""
    with host(path, **options) as tree:
        tree.system("good", kernel=kernel)
        for name in ("bad", "fix"):
            tree.system(name)
        tree.deploy(good(tree))
        tree.root_known_good(good(tree))
        tree.deploy(bad(tree))
        tree.reboot()
        yield tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with bad_after_good(tmp_path) as tree:
        yield tree


def good(tree: Tree) -> str:
    return f"{tree.root}/store/good-nixos"


def bad(tree: Tree) -> str:
    return f"{tree.root}/store/bad-nixos"


def fix(tree: Tree) -> str:
    return f"{tree.root}/store/fix-nixos"


def test_what_runs_boots_and_is_in_the_profile_is_the_target(tree: Tree) -> None:
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running) == (True, good(tree))
    assert came.detail == "switch-to-configuration exited with 0"
    assert came.lasts
    assert {tree.runs, tree.boots, tree.in_profile} == {good(tree)}


@pytest.mark.parametrize("codes", [("loader",), ("loader", "unit"), ("loader", "script")])
def test_where_the_boot_loader_fails_the_target_is_activated_all_the_same(
    tree: Tree, codes: tuple[str, ...]
) -> None:
    tree.fail(*codes)
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running) == (True, good(tree))
    assert tree.runs == good(tree)
    # What could not be done is told: where each of the three is now, and the mend.
    assert tree.boots == bad(tree)
    assert f"the profile is {tree.in_profile}, {bad(tree)} boots next" in came.detail
    assert f"{good(tree)} runs" in came.detail
    assert f"run: healer safeswitch rollback --to {good(tree)}" in came.detail
    assert not came.lasts
    # Which does it, once the boot loader is mended; before, it says that it has not.
    came = tree.roll_back(tree.intent(good(tree), good(tree), seq=8))
    assert (came.lasts, tree.boots) == (False, bad(tree))
    tree.fail()
    came = tree.roll_back(tree.intent(good(tree), good(tree), seq=9))
    assert (came.ok, came.lasts) == (True, True)
    assert {tree.runs, tree.boots, tree.in_profile} == {good(tree)}


@pytest.mark.parametrize("loader", ["fails", "hangs", "works"])
def test_where_it_is_not_known_what_boots_it_lasts_if_the_boot_loader_was_set(
    loader: str, tmp_path: Path
) -> None:
    """As with a boot loader that healer does not know."""
    with host(tmp_path, timeout_sec=2) as tree, pytest.MonkeyPatch.context() as patch:
        for name in ("good", "bad"):
            tree.system(name)
        tree.deploy(good(tree))
        tree.root_known_good(good(tree))
        tree.deploy(bad(tree))
        patch.setattr(bootloader, "default", lambda: None)
        if loader == "fails":
            tree.fail("loader")
        elif loader == "hangs":
            tree.hang("loading")
        came = tree.roll_back(tree.intent(bad(tree), good(tree)))
        assert (came.ok, came.running, came.lasts) == (True, good(tree), loader == "works")


def test_where_there_is_no_room_to_boot_nothing_is_written_there(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "MARGIN", 2**62)
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running) == (True, good(tree))
    assert came.detail.startswith("no space: ")
    assert f"the profile is {bad(tree)}, {bad(tree)} boots next" in came.detail
    assert (tree.runs, tree.boots, tree.in_profile) == (good(tree), bad(tree), bad(tree))
    assert tree.switched == [("test", good(tree))]
    assert not came.lasts
    monkeypatch.undo()
    assert tree.roll_back(tree.intent(good(tree), good(tree), seq=8)).lasts
    assert {tree.runs, tree.boots, tree.in_profile} == {good(tree)}


def test_where_the_profile_cannot_be_set_the_target_is_activated_all_the_same(tree: Tree) -> None:
    tree.fail("profile")
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, tree.runs) == (True, good(tree))
    assert "nix-env --set failed" in came.detail
    assert not came.lasts
    assert f"the profile is {bad(tree)}, {bad(tree)} boots next" in came.detail


def test_a_boot_loader_that_hangs_does_not_keep_the_bad_system_running(tmp_path: Path) -> None:
    with host(tmp_path, timeout_sec=2) as tree:
        tree.system("good")
        tree.system("bad")
        tree.deploy(good(tree))
        tree.root_known_good(good(tree))
        tree.deploy(bad(tree))
        tree.hang("loading")
        came = tree.roll_back(tree.intent(bad(tree), good(tree)))
        assert (came.ok, tree.runs, tree.boots) == (True, good(tree), bad(tree))
        assert "did not end within safeSwitch.timeoutSec" in came.detail
        assert f"{bad(tree)} boots next" in came.detail


def test_what_refuses_to_be_activated_at_all_is_told_with_what_is_where(tree: Tree) -> None:
    tree.fail("loader", "check")
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running) == (False, bad(tree))
    assert f"{bad(tree)} is still running" in came.detail
    assert f"the profile is {good(tree)}, {bad(tree)} boots next, {bad(tree)} runs" in came.detail
    assert (tree.runs, tree.boots, tree.in_profile) == (bad(tree), bad(tree), good(tree))


def test_a_reboot_that_cannot_be_arranged_leaves_the_live_switch(tmp_path: Path) -> None:
    """A kernel that was not booted is a reason to reboot, and none to stay with what crashes."""
    with bad_after_good(tmp_path, "6.18") as tree:
        tree.fail("loader")
        came = tree.roll_back(tree.intent(bad(tree), good(tree)))
        assert (came.ok, came.waiting, tree.runs) == (True, None, good(tree))
        assert "another kernel" in came.detail
        assert f"{bad(tree)} boots next" in came.detail


@pytest.mark.parametrize("moment", ["profile", "begin", "loader", "activate"])
def test_a_unit_that_is_killed_is_begun_again(tree: Tree, moment: str) -> None:
    tree.kill_unit_at(moment)
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running) == (True, good(tree))
    assert {tree.runs, tree.boots, tree.in_profile} == {good(tree)}


def test_what_was_staged_for_the_next_boot_is_left_alone(tree: Tree) -> None:
    tree.deploy(fix(tree), "boot")
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running) == (True, good(tree))
    assert (tree.runs, tree.boots, tree.in_profile) == (good(tree), fix(tree), fix(tree))
    assert f"{fix(tree)} is in the profile" in came.detail
    assert f"{fix(tree)} boots next, {good(tree)} runs" in came.detail
    assert "--to" not in came.detail
    assert came.lasts
    assert tree.switched[-1] == ("test", good(tree))


def test_what_is_staged_while_the_hooks_run_is_left_alone_too(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.agents = {"db": Agent(unit="db.service", before_rollback=("/bin/true",))}
    monkeypatch.setattr(hooks, "run", lambda *_: tree.deploy(fix(tree), "boot"))
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running) == (True, good(tree))
    assert (tree.boots, tree.in_profile) == (fix(tree), fix(tree))


def test_what_is_condemned_while_it_waits_for_a_reboot_is_not_rebooted_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bad_after_good(tmp_path, "6.18", reboot="window") as tree:
        monkeypatch.setattr(clock, "minute_of_day", lambda: 0)
        assert tree.carry_out("rollback", bad(tree), good(tree)).waiting is not None
        assert tree.carry_out("condemn", bad(tree), good(tree), seq=8).ok
        monkeypatch.setattr(clock, "minute_of_day", lambda: 2 * 60)
        came = tree.carry_out("rollback", bad(tree), good(tree))
        assert (came.ok, came.waiting, tree.reboots) == (False, None, 0)
        assert f"{good(tree)} was condemned since; it still boots next" in came.detail


def test_what_is_in_the_profile_only_does_not_leave_the_bad_system_to_boot(tree: Tree) -> None:
    """As between the two steps of a nixos-rebuild, or where it has a profile of another name."""
    tree.set_profile(fix(tree))
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running) == (True, good(tree))
    assert (tree.runs, tree.boots, tree.in_profile) == (good(tree), good(tree), fix(tree))
    assert f"the profile is {fix(tree)}, {good(tree)} boots next" in came.detail
    tree.fail("loader")
    tree.deploy(bad(tree))
    tree.set_profile(fix(tree))
    came = tree.roll_back(tree.intent(bad(tree), good(tree), seq=8))
    assert (came.ok, came.running) == (True, good(tree))
    assert (tree.runs, tree.boots, tree.in_profile) == (good(tree), bad(tree), fix(tree))
    assert not came.lasts


def test_what_was_staged_is_left_also_where_the_target_takes_a_reboot(tmp_path: Path) -> None:
    with bad_after_good(tmp_path, "6.18", reboot="at-once") as tree:
        tree.deploy(fix(tree), "boot")
        came = tree.roll_back(tree.intent(bad(tree), good(tree)))
        assert (came.ok, came.running) == (True, good(tree))
        assert (tree.boots, tree.in_profile, tree.reboots) == (fix(tree), fix(tree), 0)
        # And where that is refused, as across a switch inhibitor, it is what is left.
        tree.deploy(bad(tree), "test")
        tree.fail("check")
        came = tree.roll_back(tree.intent(bad(tree), good(tree), seq=8))
        assert (came.ok, came.running) == (False, bad(tree))
        assert (tree.boots, tree.in_profile) == (fix(tree), fix(tree))
        assert f"{fix(tree)} boots next, {bad(tree)} runs" in came.detail


def test_a_profile_at_the_target_already_is_nobody_elses(tree: Tree) -> None:
    """As after a power cut between the two steps: it is gone on with."""
    tree.set_profile(good(tree))
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert came.ok
    assert {tree.runs, tree.boots, tree.in_profile} == {good(tree)}


def test_a_specialisation_has_its_base_in_the_profile(tree: Tree) -> None:
    special = tree.specialise(bad(tree), "fast")
    tree.deploy(special, "test")
    came = tree.roll_back(tree.intent(special, good(tree)))
    assert came.ok
    assert {tree.runs, tree.boots, tree.in_profile} == {good(tree)}
    # And on the way back to one.
    special = tree.specialise(good(tree), "slow")
    tree.deploy(bad(tree))
    came = tree.roll_back(tree.intent(bad(tree), special, seq=8))
    assert (came.ok, came.running, tree.in_profile) == (True, special, good(tree))


def test_a_unit_that_was_killed_each_time_is_judged_by_what_runs(tree: Tree) -> None:
    for moment in ("profile", "loader", "activate"):
        tree.kill_unit_at(moment)
    came = tree.roll_back(tree.intent(bad(tree), good(tree)))
    assert (came.ok, came.running, came.detail) == (
        True,
        good(tree),
        "switch-to-configuration was killed",
    )


def test_the_ladders_reboot_makes_the_known_good_boot(tree: Tree) -> None:
    assert tree.carry_out("reboot", bad(tree), good(tree)).ok
    assert (tree.runs, tree.boots, tree.in_profile) == (bad(tree), good(tree), good(tree))
    assert tree.reboots == 1
    # Interrupted before the host went down, it is begun again.
    assert tree.carry_out("reboot", bad(tree), good(tree)).ok
    assert tree.reboots == 2


@pytest.mark.parametrize("meanwhile", ["its outcome", "another system"])
def test_a_reboot_that_had_to_wait_is_none_any_more(tree: Tree, meanwhile: str) -> None:
    def reboot() -> str:
        with pytest.raises(RefusedError) as refused:
            tree.carry_out("reboot", bad(tree), good(tree))
        return str(refused.value)

    with ThreadPoolExecutor(1) as other:
        with rollback.exclusively():
            said = other.submit(reboot)
            # It has seen what runs, and waits.
            retry(lambda _last: flock_waits(tree), interval=0.01)
            if meanwhile == "its outcome":
                tree.answered = 7
            else:
                tree.deploy(fix(tree))
        expected = {"its outcome": "is answered", "another system": "runs by now"}
        assert said.result().endswith(expected[meanwhile])
    assert tree.reboots == 0
    assert [action for action, _ in tree.switched] == []


def flock_waits(tree: Tree) -> bool:
    """Whether somebody waits for the lock of rollbacks (proc_locks(5))."""
    inode = (tree.root / "helper/rollback.lock").stat().st_ino
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(line.split()[-3].endswith(f":{inode}") for line in waiting)


def test_the_ladders_reboot_leaves_what_was_staged_for_the_next_boot(tree: Tree) -> None:
    tree.deploy(fix(tree), "boot")
    with pytest.raises(RefusedError, match=f"{fix(tree)} is in the profile, and is left there"):
        tree.carry_out("reboot", bad(tree), good(tree))
    assert (tree.runs, tree.boots, tree.in_profile) == (bad(tree), fix(tree), fix(tree))
    assert tree.reboots == 0


def test_the_ladders_reboot_is_no_boot_of_the_bad_system_for_what_is_in_the_profile_only(
    tree: Tree,
) -> None:
    tree.set_profile(fix(tree))
    assert tree.carry_out("reboot", bad(tree), good(tree)).ok
    assert (tree.boots, tree.in_profile, tree.reboots) == (good(tree), fix(tree), 1)


def test_what_healer_condemns_is_known_good_no_more(tree: Tree) -> None:
    """An older known-good system was deployed again, and makes agents crash now."""
    tree.root_known_good(bad(tree))
    tree.root_known_good(good(tree))
    assert tree.known_goods() == [good(tree), bad(tree), good(tree)]
    assert tree.carry_out("rollback", bad(tree), good(tree)).ok
    assert tree.known_goods() == [good(tree)]


def test_what_is_still_running_or_was_not_condemned_stays_known_good(tree: Tree) -> None:
    tree.root_known_good(bad(tree))
    tree.root_known_good(good(tree))
    # The agent's unit could not be mended so: nobody is condemned.
    tree.fail("loader", "check")
    assert not tree.carry_out("rollback", bad(tree), good(tree)).ok
    assert bad(tree) in tree.known_goods()
    # A person who goes back condemns nothing by that.
    tree.fail()
    tree.deploy(bad(tree))
    assert tree.roll_back(tree.intent(bad(tree), good(tree), 8, asked_by="alice")).ok
    assert bad(tree) in tree.known_goods()


def test_what_roots_the_target_stays_known_good(tree: Tree) -> None:
    special = tree.specialise(bad(tree), "slow")
    tree.root_known_good(bad(tree))
    assert tree.carry_out("rollback", bad(tree), special).ok
    assert (tree.runs, tree.known_goods()) == (special, [bad(tree), good(tree)])


def test_the_last_of_them_are_kept_from_every_garbage_collection(tree: Tree) -> None:
    """nix-collect-garbage -d leaves the current generation of a profile, and no other."""

    def root(*names: str, keep: int = 3, came_up: tuple[str, ...] = ()) -> None:
        for name in names:
            known_good.root(systems[name], tree.profile, keep, [systems[up] for up in came_up])

    systems = {name: tree.system(name) for name in "abcde"}
    root(*"cababab")
    # So many systems, however often each was.
    assert known_good.systems() == [systems["b"], systems["a"], systems["c"]]
    current = Path(tree.known_good).readlink().name
    for link in tree.known_good.parent.glob("known-good-*-link"):
        if link.name != current:
            link.unlink()
    assert tree.known_goods() == [systems["b"]]
    assert known_good.systems() == [systems["b"], systems["a"], systems["c"]]
    rooted = {str(link.resolve()) for link in (tree.root / "roots").iterdir()}
    assert rooted == {*known_good.systems()}
    root("d", came_up=("c",))
    assert known_good.systems() == [systems[name] for name in "dbac"]
    root("e")
    assert known_good.systems() == [systems[name] for name in "edb"]
    # To drop the newest makes an older one the current one, also where its generation is gone.
    for link in tree.known_good.parent.glob("known-good-*-link"):
        if link.resolve() == Path(systems["d"]):
            link.unlink()
    assert f"is {systems['d']}" in known_good.drop(systems["e"])
    assert known_good.systems() == [systems["d"], systems["b"]]
    assert "the only known-good system" not in known_good.drop(systems["b"])
    assert "the only known-good system" in known_good.drop(systems["d"])
    assert known_good.systems() == []
    assert [*(tree.root / "roots").iterdir()] == []
