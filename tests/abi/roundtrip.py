"""argv: config passphrase token. The Python module does what C does."""

import json
import os
import shutil
import sys
import threading
import unittest
import uuid

import ronkms
import ronkms_receipts

CONFIG, PASSPHRASE, TOKEN = sys.argv[1:4]
DIGEST = bytes(range(32))


class Test(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kms = ronkms.KMS(json.loads(CONFIG), passphrase=bytearray(PASSPHRASE.encode()))
        cls.session = cls.kms.session(TOKEN)

    @classmethod
    def tearDownClass(cls):
        cls.kms.close()
        cls.kms.close()
        cls.session.close()

    def create(self, alg):
        return self.session.call("create", op_id=str(uuid.uuid4()), tenant="acme", purpose="py", alg=alg)["kid"]

    def test_sign_verify(self):
        for alg in ("ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"):
            kid = self.create(alg)
            for digest in (DIGEST, bytearray(DIGEST), memoryview(DIGEST)):
                bundle, receipt = self.session.sign_with_receipt(kid, digest, b"context")
                self.session.verify(digest, bundle, b"context")
                self.assertGreater(receipt.key_seq, 0)
            with self.assertRaises(ronkms.InvalidSignature) as caught:
                self.session.verify(DIGEST, bundle)
            self.assertEqual((caught.exception.code, caught.exception.reason), (13, "signature"))

    def test_errors(self):
        absent = "acme/py/ed25519/00000000-0000-4000-8000-00000000000a"
        with self.assertRaises(ronkms.NotFound):
            self.session.sign(absent, DIGEST)
        with self.assertRaises(PermissionError):
            self.session.sign(absent.replace("acme", "other"), DIGEST)
        with self.assertRaises(ValueError):
            self.session.sign(absent, DIGEST[1:])
        with self.assertRaises(ronkms.Denied):
            self.session.call("export", kid=absent)
        with self.assertRaises(ronkms.Unauthenticated):
            self.kms.session("forged")
        with self.assertRaises(ronkms.Busy) as caught:
            ronkms.KMS(CONFIG, passphrase=PASSPHRASE.encode())
        self.assertTrue(caught.exception.retryable)
        self.assertEqual(self.kms.http_address, "")

    def test_closed(self):
        with self.kms.session(TOKEN) as session:
            pass
        with self.assertRaises(ronkms.BadHandle):
            session.call("list", tenant="acme")

    def test_threads(self):
        kid, failures = self.create("ed25519"), []

        def work():
            try:
                self.session.verify(DIGEST, self.session.sign(kid, DIGEST))
            except Exception as e:
                failures.append(e)

        threads = [threading.Thread(target=work) for _ in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(failures, [])

    def test_rollback(self):
        """The store put back to an earlier state is refused by whoever keeps receipts."""
        store, book = json.loads(CONFIG)["dir"], ronkms_receipts.Book()

        def opened():
            return ronkms.KMS(json.loads(CONFIG), passphrase=PASSPHRASE.encode())

        type(self).kms.close()
        with opened() as kms, kms.session(TOKEN, book=book) as s:
            op = str(uuid.uuid4())
            made = s.call("create", op_id=str(uuid.uuid4()), tenant="acme", purpose="py", alg="ed25519+ml-dsa-65")
            kid = made["kid"].split("#")[0]
            bundle, receipt = s.sign_with_receipt(kid, DIGEST, b"context")
            s.verify(DIGEST, bundle, b"context")
            self.assertTrue(receipt.log.startswith("ron-kms/audit/"))
            self.assertEqual(receipt.log, made["receipt"]["log"])
            for _ in range(2):  # the second is a replay
                s.call("rotate", op_id=op, kid=kid)
            s.call("sign_batch", kid=kid, items=[{"payload_b3": DIGEST.hex()}, {"payload_b3": "zz"}])
            s.call("sign", kid=kid, payload_b3=DIGEST.hex())
            failures = []

            def work():
                try:
                    for _ in range(20):
                        s.sign(kid, DIGEST)
                except Exception as e:
                    failures.append(e)

            threads = [threading.Thread(target=work) for _ in range(8)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertEqual(failures, [])
        shutil.copytree(store, store + ".old")
        with opened() as kms, kms.session(TOKEN, book=book) as s:
            for _ in range(20):
                s.sign(kid, DIGEST)
        shutil.rmtree(store)
        shutil.move(store + ".old", store)
        with opened() as kms, kms.session(TOKEN, book=book) as s:
            for _ in range(2):
                with self.assertRaises(ronkms_receipts.Rollback):
                    s.sign(kid, DIGEST)
        self.setUpClass()

    def test_fork(self):
        pid = os.fork()
        if pid == 0:
            try:
                self.session.call("list", tenant="acme")
            except ronkms.Forked:
                os._exit(7)
            os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 7)
        self.session.call("list", tenant="acme")


result = unittest.TextTestRunner(stream=sys.stdout).run(unittest.defaultTestLoader.loadTestsFromTestCase(Test))
sys.exit(not result.wasSuccessful())
