"""Nix builder (Python's standard library only): the units that Debian's packages bring.

On NixOS /etc/systemd/system has every unit of the system, those of systemd's own package too, and
switch-to-configuration looks at no others.
"""

import json
import os
import shutil
from pathlib import Path

_PACKAGED = Path("/usr/lib/systemd/system")


def main() -> None:
    attributes = json.loads(Path(os.environ["NIX_ATTRS_JSON_FILE"]).read_text())
    out = Path(attributes["outputs"]["out"])
    out.mkdir()
    for unit in _PACKAGED.iterdir():
        if unit.is_symlink() or unit.is_file():
            shutil.copy(unit, out / unit.name, follow_symlinks=False)


main()
