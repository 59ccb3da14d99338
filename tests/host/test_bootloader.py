"""The boot default, from the files that systemd-boot and GRUB have on NixOS."""

from pathlib import Path

import pytest

from healer.host import bootloader

STORE = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system"


def entry(root: Path, name: str, system: str) -> None:
    file = root / "loader/entries" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"title NixOS\nlinux /EFI/nixos/k.efi\noptions init={system}/init quiet\n")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("nixos-generation-7.conf", "nixos-generation-7.conf"),
        ("nixos-generation-7.conf", "nixos-generation-7+2-1.conf"),
        ("nixos-*", "nixos-generation-10.conf"),
    ],
)
def test_systemd_boot(tmp_path: Path, setting: str, name: str) -> None:
    entry(tmp_path, "nixos-generation-6.conf", "/nix/store/other")
    entry(tmp_path, name, STORE)
    (tmp_path / "loader/loader.conf").write_text(f"timeout 5\ndefault {setting}\n")
    assert bootloader.default((tmp_path,)) == STORE


def test_the_default_is_read_anew_when_it_is_written_anew(tmp_path: Path) -> None:
    for number in (1, 20):
        entry(tmp_path, f"nixos-generation-{number}.conf", f"/nix/store/{number}-nixos")
        conf = tmp_path / "loader/loader.conf"
        conf.write_text(f"default nixos-generation-{number}.conf\n")
        assert bootloader.default((tmp_path,)) == f"/nix/store/{number}-nixos"


def test_grub(tmp_path: Path) -> None:
    conf = tmp_path / "grub/grub.cfg"
    conf.parent.mkdir()
    conf.write_text(
        f'set default=0\nmenuentry "NixOS" {{\n  linux /k init={STORE}/init loglevel=4\n}}\n'
        'menuentry "old" { linux /k init=/nix/store/old/init }\n'
    )
    assert bootloader.default((tmp_path,)) == STORE


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    assert bootloader.default((tmp_path,)) is None
    entry(tmp_path, "nixos-generation-1.conf", STORE)
    (tmp_path / "loader/loader.conf").write_text("default nixos-generation-2.conf\n")
    assert bootloader.default((tmp_path,)) is None
