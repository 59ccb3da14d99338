"""Evaluate Nix expressions of the checkout, without building anything."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[2]
NIX = shutil.which("nix-instantiate")
NIXPKGS_LIB = os.environ.get("NIXPKGS_LIB")

needs_nix = pytest.mark.skipif(NIX is None, reason="nix-instantiate is not installed")
needs_lib = pytest.mark.skipif(
    NIX is None or NIXPKGS_LIB is None,
    reason="NIXPKGS_LIB does not name a checkout of nix-community/nixpkgs.lib",
)


class EvaluationError(Exception):
    """Nix refused the expression; the text is what it said."""


def nix(*arguments: str) -> str:
    """Run nix-instantiate and return its output."""
    assert NIX is not None
    done = subprocess.run([NIX, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EvaluationError(done.stderr)
    return done.stdout


def evaluate(expression: str) -> Any:
    """Evaluate an expression, in which @/ stands for the checkout."""
    text = expression.replace("@/", f"{CHECKOUT}/")
    # config.yaml is a store file that builtins.toFile writes: that needs a store it may write to.
    return json.loads(nix("--eval", "--strict", "--json", "--read-write-mode", "-E", text))


def render(declaration: str, extra: str = "") -> Any:
    """Render a partial services.healer value (Nix), as the local machine does."""
    return evaluate(
        f"""import @/nix/render.nix {{
          cfg = import @/nix/complete.nix {declaration};
          package = "/healer"; {extra}
        }}"""
    )


def module(declaration: str, *modules: str) -> Any:
    """Evaluate module.nix in the real module system, with services.healer declared so."""
    everything = " ".join([f"{{ services.healer = {declaration}; }}", *modules])
    return evaluate(
        f"""let lib = import {NIXPKGS_LIB}/lib; in
        import @/tests/nix/stand_ins.nix {{ inherit lib; modules = [ {everything} ]; }}"""
    )
