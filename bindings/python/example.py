"""python3 example.py CONFIG.json TOKEN KID DIGEST_HEX: sign and verify."""

import sys

import ronkms

config, token, kid, digest = open(sys.argv[1]).read(), open(sys.argv[2]).read().strip(), sys.argv[3], bytes.fromhex(sys.argv[4])
with ronkms.KMS(config) as kms, kms.session(token) as session:
    bundle = session.sign(kid, digest)
    session.verify(digest, bundle)
    print(f"{len(bundle)} bytes signed and verified")
