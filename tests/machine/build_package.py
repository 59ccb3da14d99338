"""Nix builder (Python's standard library only): healer's package out of its source."""

import compileall
import json
import os
import py_compile
import shutil
import stat
from pathlib import Path

_PROGRAM = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, {lib!r})
from healer.cli import main

sys.exit(main())
"""


def main() -> None:
    attributes = json.loads(Path(os.environ["NIX_ATTRS_JSON_FILE"]).read_text())
    out = Path(attributes["outputs"]["out"])
    lib = out / "lib"
    shutil.copytree(attributes["source"], lib / "healer")
    for path in [lib / "healer", *(lib / "healer").rglob("*")]:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    # Unchecked: Nix sets every file's time to 1, so a time in the .pyc would never match. A file
    # that does not compile is reported by whoever imports it, with its traceback.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(lib, quiet=2, invalidation_mode=unchecked)
    (out / "tag").write_text(attributes["tag"])
    program = out / "bin" / "healer"
    program.parent.mkdir()
    program.write_text(_PROGRAM.format(lib=str(lib)))
    program.chmod(0o755)


main()
