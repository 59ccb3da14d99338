import base64
import json
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import cryptography_vectors
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from healer.errors import LedgerError, LedgerIOError
from healer.ledger import entry, keys
from healer.ledger.canonical import NotCanonicalError
from healer.ledger.entry import BadRecordError, Body
from tests.ledger.helpers import BOOT, vectors, write

# RFC 8032 section 7.1: secret key, public key, message, signature.
RFC_8032 = {
    "TEST 1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701c"
        "f9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "TEST 2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0"
        "f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "TEST 3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f76098"
        "4dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "TEST SHA(abc)": (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c664"
        "31e0303dca179c138ac17ad9bef1177331a704",
    ),
}


def holds(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether healer would take the signature: its own check of the key, then of the signature."""
    try:
        keys.public_key(public).verify(signature, message)
    except (LedgerError, InvalidSignature):
        return False
    return True


@pytest.mark.parametrize("name", RFC_8032)
def test_rfc_8032(name: str) -> None:
    secret, public, message, signature = map(bytes.fromhex, RFC_8032[name])
    key = Ed25519PrivateKey.from_private_bytes(secret)
    assert keys.raw_public(key.public_key()) == public
    assert key.sign(message) == signature
    assert holds(public, signature, message)
    assert not holds(public, signature, message + b"\x00")


def test_wycheproof() -> None:
    suite: dict[str, Any] = json.loads((vectors("wycheproof") / "ed25519_test.json").read_text())
    seen = 0
    for group in suite["testGroups"]:
        public = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            message, signature = bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            assert case["result"] in {"valid", "invalid"}
            expected = case["result"] == "valid"
            assert holds(public, signature, message) == expected, case["comment"]
            seen += 1
    assert seen == suite["numberOfTests"] == 151


def test_cryptography_vectors() -> None:
    seen = 0
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        for line in file:
            secret, public, message, signed = map(bytes.fromhex, line.split(":")[:4])
            key = Ed25519PrivateKey.from_private_bytes(secret[:32])
            assert keys.raw_public(key.public_key()) == public
            assert key.sign(message) == signed[:64]
            assert holds(public, signed[:64], message)
            seen += 1
    assert seen == 1024


@pytest.mark.parametrize("sign", [0, 0x80])
@pytest.mark.parametrize(
    "point",
    [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_keys_of_low_order_are_refused(point: str, sign: int) -> None:
    raw = bytearray.fromhex(point)
    raw[31] |= sign
    with pytest.raises(LedgerError, match=r"low order|canonical"):
        keys.public_key(bytes(raw))


def test_a_generated_key_is_0400_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.key"
    key = keys.generate(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.key"]
    again = keys.load_private(path, owned=True)
    assert keys.raw_public(again.public_key()) == keys.raw_public(key.public_key())


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.key"
    keys.generate(path)
    path.chmod(0o440)
    with pytest.raises(LedgerError, match=f"chmod 0400 {path}"):
        keys.load_private(path, owned=True)
    keys.load_private(path, owned=False)  # a credential: systemd sets its mode


def test_bad_key_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(LedgerIOError, match=str(path)):
        keys.load_private(path, owned=True)
    other = X25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    for content in (
        b"",
        b"not a key",
        other.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    ):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(0o400)
        with pytest.raises(LedgerError, match=f"{path} is not an .*openssl genpkey"):
            keys.load_private(path, owned=True)
        with pytest.raises(LedgerError, match=f"{path} is not a PEM public key"):
            keys.load_public(path)
    path.unlink()
    path.write_bytes(
        other.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(LedgerError, match=f"{path} is not an Ed25519"):
        keys.load_public(path)


KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def body(**changes: Any) -> Body:
    fields: dict[str, Any] = {
        "batch": 3,
        "boot": BOOT,
        "boottime_us": 5,
        "data": {"b": [1, None, "é"], "a": True},
        "epoch": 0,
        "incident": "worker-01234567",
        "prev": "ab" * 32,
        "seq": 7,
        "time_us": -1,
        "type": "agent.crash",
    }
    return Body(**(fields | changes))


@given(
    seq=st.integers(0, 2**53 - 1),
    time_us=st.integers(-(2**53) + 1, 2**53 - 1),
    incident=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
)
def test_an_entry_reads_back_as_it_was_sealed(seq: int, time_us: int, incident: str | None) -> None:
    sealed = entry.seal(body(seq=seq, time_us=time_us, incident=incident), KEY)
    assert entry.parse(sealed.raw) == sealed
    entry.check_signature(sealed, KEY.public_key())
    assert json.loads(sealed.raw)["~sig"] == base64.b64encode(sealed.signature).decode()


def test_the_body_has_a_longest_length() -> None:
    room = 65_535 - len(entry.seal(body(data={"x": ""}), KEY).raw) + entry.SUFFIX_LENGTH - 1
    longest = entry.seal(body(data={"x": "a" * room}), KEY)
    assert len(longest.raw) == entry.MAX_LINE
    assert entry.parse(longest.raw) == longest
    with pytest.raises(NotCanonicalError, match="65536"):
        entry.seal(body(data={"x": "a" * (room + 1)}), KEY)
    with pytest.raises(BadRecordError, match="longer"):
        entry.parse(longest.raw + b"a")


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": -1},
        {"seq": 2**53},
        {"batch": -1},
        {"prev": "AB" * 32},
        {"prev": "ab" * 31},
        {"type": "Crash"},
        {"type": "agent.crash\n"},
        {"type": ""},
        {"incident": ""},
        {"boot": ""},
        {"data": {"a": 1.5}},
        {"data": {"a": 2**53}},
        {"data": {"~a": 1}},
        {"data": []},
    ],
    ids=repr,
)
def test_fields_out_of_range_do_not_parse(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRecordError):
        entry.parse(entry.seal(body(**changes), KEY).raw)


def test_unknown_missing_and_repeated_fields_do_not_parse() -> None:
    raw = entry.seal(body(), KEY).raw
    for old, new in (
        (b'"seq":7,', b""),
        (b'"seq":7,', b'"seq":7,"seq":7,'),
        (b'"type":', b'"tool":1,"type":'),
        (b'"seq":7', b'"seq": 7'),
        (b'"seq":7', b'"seq":7.0'),
    ):
        assert raw.count(old) == 1
        with pytest.raises(BadRecordError):
            entry.parse(raw.replace(old, new))


def test_a_signature_has_one_spelling() -> None:
    raw = entry.seal(body(), KEY).raw
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    # The last letter before "==" carries two bits of the signature and four of nothing.
    spellings = [raw[:-5] + letter.encode() + raw[-4:] for letter in alphabet]
    signature = base64.b64decode(raw[-90:-2])
    same = [line for line in spellings if base64.b64decode(line[-90:-2]) == signature]
    assert len(same) == 16
    parsed = []
    for line in same:
        try:
            parsed.append(entry.parse(line))
        except BadRecordError:
            continue
    assert [e.raw for e in parsed] == [raw]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_an_entrys_signature(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    checked = write(ledger, [1])[-1]
    (tmp_path / "message").write_bytes(entry.DOMAIN + bytes.fromhex(checked.leaf))
    (tmp_path / "signature").write_bytes(checked.signature)
    command = [
        *("openssl", "pkeyutl", "-verify", "-rawin", "-pubin"),
        *("-inkey", str(ledger / "ledger.pub"), "-in", str(tmp_path / "message")),
        *("-sigfile", str(tmp_path / "signature")),
    ]
    subprocess.run(command, check=True)
    (tmp_path / "message").write_bytes(entry.DOMAIN + bytes(32))
    assert subprocess.run(command, check=False).returncode != 0
