#!/usr/bin/env python3
"""Check signatures of the scheme ron-kms/v1 without ron-kms.

    python3 verify_offline.py preimage.json

reads {"vectors": [{"statement": …, "signatures": [{"alg", "public_hex",
"signature_hex"}]}]} as in preimage.json ("preimage_hex", if there, is compared),
rebuilds each preimage as docs/spec/preimage.md says, and verifies its Ed25519
signatures with the openssl command (1.1.1 or later). ML-DSA signatures are
listed as not checked. BLAKE3 is not in Python's library: compute the digest of
your payload with b3sum and compare it with digest_hex. The exit code is 0 only
if at least one signature was checked and none was bad.
"""
import json, os, struct, subprocess, sys, tempfile

DER_ED25519 = bytes.fromhex("302a300506032b6570032100")  # RFC 8410, before the 32 bytes


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


def main(path):
    checked = bad = 0
    with open(path) as f:
        vectors = json.load(f)["vectors"]
    for v in vectors:
        message = preimage(v["statement"])
        if v.get("preimage_hex", "") not in ("", message.hex()):
            bad += 1
            print(v["name"] + ": preimage DIFFERS")
        for s in v["signatures"]:
            verdict = "not checked"
            if s["alg"] == "ed25519":
                ok = ed25519_ok(bytes.fromhex(s["public_hex"]), message, bytes.fromhex(s["signature_hex"]))
                verdict, checked, bad = ("ok" if ok else "BAD"), checked + 1, bad + (not ok)
            print(f'{v["name"]}: {s["alg"]} {verdict}')
    return 0 if checked and not bad else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else __doc__)
