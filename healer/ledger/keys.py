"""The key that signs entries, and the public key beside the ledger.

Both are PEM (PKCS #8 and SubjectPublicKeyInfo, RFC 8410), so that openssl reads and makes them.
"""

import base64
import binascii
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from healer import files
from healer.errors import LedgerError, LedgerIOError

KEY_FILE = "ledger.key"
PUBLIC_KEY_FILE = "ledger.pub"

_P = 2**255 - 19
# The y coordinates of the eight points of small order on edwards25519; a public key among them
# verifies signatures that nobody made.
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_LOW_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


def public_key(raw: bytes) -> Ed25519PublicKey:
    """Return the public key of 32 bytes; LedgerError for one that must not be trusted."""
    if len(raw) != 32:
        raise LedgerError(f"a public key has 32 bytes, this one has {len(raw)}")
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    if y >= _P:
        raise LedgerError("the public key is not a canonical encoding of a point (RFC 8032)")
    if y in _LOW_ORDER_Y:
        raise LedgerError("the public key is a point of low order: anyone can sign for it")
    return Ed25519PublicKey.from_public_bytes(raw)


def raw_public(key: Ed25519PublicKey) -> bytes:
    """Return the 32 bytes of a public key."""
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def encode_public(key: Ed25519PublicKey) -> str:
    """Return a public key as ledger.genesis holds it: base64 of its 32 bytes."""
    return base64.b64encode(raw_public(key)).decode()


def decode_public(text: object) -> bytes:
    """Return the 32 bytes of a public key from ledger.genesis; LedgerError if it is not one."""
    if not isinstance(text, str):
        raise LedgerError("public_key is not a string")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LedgerError("public_key is not base64") from error
    if base64.b64encode(raw).decode() != text:
        raise LedgerError("public_key is not canonical base64")
    public_key(raw)
    return raw


def load_public(path: Path) -> bytes:
    """Return the 32 bytes of the Ed25519 public key in a PEM file."""
    pem = _read(path)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise LedgerError(
            f"{path} is not a PEM public key; give the ledger's ledger.pub"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise LedgerError(f"{path} is not an Ed25519 public key; give the ledger's ledger.pub")
    raw = raw_public(key)
    public_key(raw)
    return raw


def export_public(directory: Path, key: Ed25519PublicKey) -> None:
    """Write ledger.pub beside the ledger unless it is there already."""
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path = directory / PUBLIC_KEY_FILE
    if not path.exists() or path.read_bytes() != pem:
        files.write_atomically(path, pem, 0o644)


def load_private(path: Path, *, owned: bool) -> Ed25519PrivateKey:
    """Return the private key in a PEM file.

    ``owned``: the file is healer's own, so that a mode other than 0400 or 0600 is an error; the
    modes of a systemd credential are systemd's business.
    """
    pem = _read(path)
    if owned and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise LedgerError(f"{path} can be read by others; run: chmod 0400 {path}")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise LedgerError(
            f"{path} is not an unencrypted PEM private key; "
            "make one with: openssl genpkey -algorithm ed25519"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise LedgerError(
            f"{path} is not an Ed25519 key; make one with: openssl genpkey -algorithm ed25519"
        )
    return key


def generate(path: Path) -> Ed25519PrivateKey:
    """Make a new key and store it durably at ``path``, mode 0400."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files.write_atomically(path, pem, 0o400)
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(65_536)
    except OSError as error:
        raise LedgerIOError(
            f"cannot read the key {path}: {error.strerror}; name the file that holds it"
        ) from error
