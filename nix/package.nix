{ lib, python3Packages }:
python3Packages.buildPythonApplication {
  pname = "healer";
  inherit ((lib.importTOML ../pyproject.toml).project) version;
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../LICENSE
      ../README.md
      ../healer
      ../pyproject.toml
    ];
  };

  build-system = [ python3Packages.setuptools ];

  dependencies = [
    python3Packages.cryptography
    python3Packages.h11
    python3Packages.inotify-simple
    python3Packages.msgspec
    python3Packages.pyroute2
    python3Packages.pyyaml
    python3Packages.sdbus
    python3Packages.systemd-python
  ];

  # The tests boot machines; they run by `make test` and by the flake's checks.
  doCheck = false;
  pythonImportsCheck = [
    "healer.cli"
    "healer.config"
    "healer.daemon"
  ];

  meta = {
    description = "Heals a NixOS host: watchdog, automatic rollback, drift detection, signed ledger";
    license = lib.licenses.asl20;
    mainProgram = "healer";
    platforms = lib.platforms.linux;
  };
}
