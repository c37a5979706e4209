#!/usr/bin/env python3
"""Check the published vectors, or your own, without ron-kms.

    python3 verify_offline.py preimage.json | envelope.json | derive.json

preimage.json: {"vectors": [{"statement": …, "signatures": [{"alg", "public_hex",
"signature_hex"}]}]} of the scheme ron-kms/v1 ("preimage_hex", if there, is
compared), and {"raw": [{"scheme", "message_hex", "signatures"}]} of the others.
Rebuilds each preimage as docs/spec/preimage.md says, and verifies the Ed25519
signatures with the openssl command (1.1.1 or later). ML-DSA signatures are
listed as not checked. BLAKE3 is not in Python's library: compute the digest of
your payload with b3sum and compare it with digest_hex.

envelope.json: reads each envelope as docs/spec/envelope.md says, rebuilds its
associated data, and finds that the refused ones are none. Opens nothing: there
is no AES and no ML-KEM in Python's library.

derive.json: rebuilds each info and derives with HKDF as docs/spec/derive.md
says, and finds that the refused labels make no info.

The exit code is 0 only if at least one thing was checked and none was bad.
"""
import hashlib, hmac, json, os, re, struct, subprocess, sys, tempfile

DER_ED25519 = bytes.fromhex("302a300506032b6570032100")  # RFC 8410, before the 32 bytes
LABEL = re.compile(r"(?!.*::)[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,253}[A-Za-z0-9._-])?\Z")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
VERSION = re.compile(r"[1-9][0-9]*\Z")
WRAPS = {  # alg: length of enc, overhead of the body
    "x25519": (32, 16), "ml-kem-768": (1088, 16), "ml-kem-1024": (1568, 16),
    "x25519+ml-kem-768": (1120, 16), "aes-256-gcm": (0, 44), "chacha20-poly1305": (0, 44),
}
MAX_DATA_KEY, MAX_KID = 4096, 662


def lp(b):
    return struct.pack(">H", len(b)) + b


def preimage(s):
    digest = bytes.fromhex(s["digest_hex"])
    if len(digest) != 32:
        raise SystemExit("digest_hex is not 32 bytes")
    return (b"ron-kms/sign/v1\0" + lp(s["suite"].encode()) + lp(s["kid"].encode())
            + lp(bytes.fromhex(s["context_hex"])) + struct.pack(">QQ", s["not_before"], s["not_after"]) + digest)


def ed25519_ok(public, message, signature):
    with tempfile.TemporaryDirectory() as d:
        for name, data in (("key", DER_ED25519 + public), ("msg", message), ("sig", signature)):
            with open(os.path.join(d, name), "wb") as f:
                f.write(data)
        cmd = "openssl pkeyutl -verify -pubin -keyform DER -inkey key -rawin -in msg -sigfile sig"
        return subprocess.run(cmd.split(), cwd=d, capture_output=True).returncode == 0


def signatures(v, message):
    """Yields what each signature of v is: None if it was not checked."""
    for s in v["signatures"]:
        ok = None
        if s["alg"] == "ed25519":
            ok = ed25519_ok(bytes.fromhex(s["public_hex"]), message, bytes.fromhex(s["signature_hex"]))
        yield f'{v["name"]}: {s["alg"]}', ok


def check_preimages(doc):
    for v in doc["vectors"]:
        message = preimage(v["statement"])
        if v.get("preimage_hex", "") not in ("", message.hex()):
            yield v["name"] + ": preimage DIFFERS", False
        yield from signatures(v, message)
    for v in doc.get("raw") or []:
        message = bytes.fromhex(v["message_hex"])
        if v["scheme"] not in ("raw", "raw-b3") or v["scheme"] == "raw-b3" and len(message) != 32:
            yield v["name"] + ": scheme", False
        yield from signatures(v, message)


def versioned(kid):
    """Whether kid is a name and a version."""
    name, _, n = kid.partition("#v")
    return (len(kid) <= MAX_KID and name != "" and "#" not in name
            and VERSION.match(n) is not None and int(n) < 1 << 64)


def kid_ok(kid):
    """Whether kid is tenant/purpose/alg/uuid#vN."""
    parts = kid.partition("#")[0].split("/")
    return (versioned(kid) and len(parts) == 4 and all(LABEL.match(p) for p in parts[:2])
            and re.match(r"[a-z0-9][a-z0-9+-]*\Z", parts[2]) is not None and UUID.match(parts[3]) is not None)


def parse_envelope(b):
    """Returns kid, alg, enc and body, or None."""
    if len(b) < 1 or b[0] != 1:
        return None
    at, fields = 1, []
    for size in (2, 2, 2, 4):
        if len(b) - at < size:
            return None
        n = int.from_bytes(b[at:at + size], "big")
        at += size
        if len(b) - at < n:
            return None
        fields.append(b[at:at + n])
        at += n
    kid, alg = (f.decode("latin-1") for f in fields[:2])  # bytes are bytes
    enc, body = fields[2:]
    if at != len(b) or not versioned(kid) or alg not in WRAPS:
        return None
    if len(enc) != WRAPS[alg][0] or not 1 <= len(body) - WRAPS[alg][1] <= MAX_DATA_KEY:
        return None
    return kid, alg, enc, body


def check_envelopes(doc):
    for v in doc["vectors"]:
        e = parse_envelope(bytes.fromhex(v["envelope_hex"]))
        ok = e is not None and e[0] == v["kid"] and e[1] == v["alg"] and kid_ok(e[0])
        ok = ok and LABEL.match(v["tenant"]) is not None and len(e[3]) == len(v["plaintext_hex"]) // 2 + WRAPS[e[1]][1]
        fields = (v["tenant"].encode(), v["kid"].encode(), v["alg"].encode(), bytes.fromhex(v["caller_aad_hex"]))
        aad = b"ron-kms/wrap/v1\0" + b"".join(lp(f) for f in fields)
        yield v["name"] + ": envelope", ok and aad.hex() == v["aad_hex"]
    for v in doc["refused"] or []:
        yield v["name"] + ": refused", parse_envelope(bytes.fromhex(v["envelope_hex"])) is None


def hkdf_sha256(key, salt, info, n):
    prk = hmac.new(salt, key, hashlib.sha256).digest()
    out, block, i = b"", b"", 1
    while len(out) < n:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:n]


def derive_info(v):
    labels = [v["tenant"], v["purpose"], v["context"]]
    return "ron-kms::" + "::".join(labels) if all(LABEL.match(s) for s in labels) else None


def check_derivations(doc):
    salt = hashlib.sha256(b"ron-kms/derive/v1").digest()
    yield "salt", salt.hex() == doc["salt_hex"]
    for v in doc["vectors"]:
        info, okm = derive_info(v), bytes.fromhex(v["okm_hex"])
        ok = info == v["info"] and hkdf_sha256(bytes.fromhex(v["key_hex"]), salt, v["info"].encode(), len(okm)) == okm
        yield v["name"] + ": derived", ok
    for v in doc["refused"] or []:
        yield v["name"] + ": refused", derive_info(v) is None


def main(path):
    with open(path, encoding="utf-8") as f:
        doc = json.load(f)
    check = check_preimages
    if "salt_hex" in doc:
        check = check_derivations
    elif doc["vectors"] and "envelope_hex" in doc["vectors"][0]:
        check = check_envelopes
    if not doc["vectors"]:
        raise SystemExit("no vectors")
    checked = bad = 0
    for what, ok in check(doc):
        checked, bad = checked + (ok is not None), bad + (ok is False)
        print(what, {None: "not checked", True: "ok", False: "BAD"}[ok])
    return 0 if checked and not bad else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else __doc__)
