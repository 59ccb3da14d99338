"""The flake parses, its lock is complete, its outputs evaluate as far as nixpkgs is not needed."""

import base64
import json
from typing import Any

import pytest

from tests.nix.evaluation import CHECKOUT, evaluate, needs_nix, nix

FILES = sorted(
    path.relative_to(CHECKOUT).as_posix()
    for pattern in ("*.nix", "nix/*.nix", "vm-tests/*.nix")
    for path in CHECKOUT.glob(pattern)
)

# Of nixpkgs only what the outputs are made of, each part saying what it was asked for.
STUB = """
  let
    lib = {
      genAttrs = names: make: builtins.listToAttrs (
        map (name: { inherit name; value = make name; }) names
      );
      mkDefault = value: { default = value; };
    };
    pkgs = system: {
      callPackage = file: _: "${toString file} for ${system}";
      nixfmt-tree = "nixfmt-tree for ${system}";
      stdenv.hostPlatform = { inherit system; };
    };
    nixpkgs.lib = lib;
    nixpkgs.legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] pkgs;
    flake = import @/flake.nix;
    self = flake.outputs { inherit self nixpkgs; };
    module = self.nixosModules.default { inherit lib; pkgs = pkgs "x86_64-linux"; };
  in
"""


@needs_nix
@pytest.mark.parametrize("path", FILES)
def test_every_nix_file_parses(path: str) -> None:
    assert nix("--parse", str(CHECKOUT / path))


@needs_nix
def test_outputs() -> None:
    outputs: Any = evaluate(
        STUB
        + """{
          inherit (self) packages formatter;
          systems = builtins.attrNames self.checks;
          inputs = flake.inputs;
          imports = map toString module.imports;
          package = module.services.healer.package;
        }"""
    )
    built = f"{CHECKOUT}/nix/package.nix for x86_64-linux"
    assert outputs["packages"]["x86_64-linux"]["default"] == built
    assert outputs["package"] == {"default": built}
    assert outputs["imports"] == [f"{CHECKOUT}/module.nix"]
    assert outputs["formatter"]["aarch64-linux"] == "nixfmt-tree for aarch64-linux"
    assert outputs["systems"] == ["aarch64-linux", "x86_64-linux"]
    assert outputs["inputs"] == {"nixpkgs": {"url": "github:NixOS/nixpkgs/nixos-26.05"}}


@needs_nix
def test_the_lock_is_complete() -> None:
    lock = json.loads((CHECKOUT / "flake.lock").read_text())
    inputs = evaluate("(import @/flake.nix).inputs")
    assert lock["version"] == 7
    root = lock["nodes"][lock["root"]]
    assert root["inputs"].keys() == inputs.keys()
    assert lock["nodes"].keys() == {lock["root"], *root["inputs"].values()}
    for name, node in root["inputs"].items():
        locked, original = lock["nodes"][node]["locked"], lock["nodes"][node]["original"]
        url = f"{original['type']}:{original['owner']}/{original['repo']}/{original['ref']}"
        assert url == inputs[name]["url"]
        assert (locked["owner"], locked["repo"]) == (original["owner"], original["repo"])
        assert len(bytes.fromhex(locked["rev"])) == 20
        algorithm, _, digest = locked["narHash"].partition("-")
        assert algorithm == "sha256"
        assert len(base64.b64decode(digest, validate=True)) == 32
        assert locked["lastModified"] > 1_700_000_000


@needs_nix
def test_the_machine_of_the_main_job_can_be_rendered() -> None:
    rendered: Any = evaluate(
        """let
          system = import @/vm-tests/main-job-system.nix;
          render = healer: import @/nix/render.nix {
            cfg = import @/nix/complete.nix healer;
            package = "/healer";
          };
          deployments = builtins.mapAttrs (_: changed: changed.healer) system.specialisation;
        in builtins.mapAttrs (_: healer: (render healer).services.counter) (
          deployments // { base = system.healer; }
        )"""
    )
    commands = {name: unit["serviceConfig"]["ExecStart"] for name, unit in rendered.items()}
    assert commands["good"] == commands["base"] != commands["bad"]
    assert rendered["good"]["environment"] != rendered["base"]["environment"]
