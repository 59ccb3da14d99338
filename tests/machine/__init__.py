"""The local test machine: a NixOS-like system to boot in a container or a virtual machine.

``Machine`` is the NixOS test driver's, so that the scripts of vm-tests/ run on either.
docs/local-machine.md tells how it is made and where it differs from NixOS.
"""
