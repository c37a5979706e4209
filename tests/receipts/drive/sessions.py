"""What a session of ronkms does with a book. The service is scripted: only one that lies can be refused."""

import pathlib
import sys
import tempfile
import unittest

import ronkms
import ronkms_receipts

KID = "acme/audit/ed25519/0190a8e2-7c3e-4f6b-9d3a-2f1e5c7b8a90"
KID2 = "acme/audit/ed25519/0191b7d4-1a2b-4c3d-8e9f-0a1b2c3d4e5f"


def receipt(index, seq, size=1):
    return {"log": "log", "log_index": index, "key_seq": seq, "checkpoint_size": size}


class Scripted(ronkms.Session):
    """A session whose answers are given."""

    def __init__(self, book):
        self._book, self.answers, self.requests = book, [], []

    def _call(self, verb, request):
        self.requests.append((verb, request))
        answer = self.answers.pop(0)
        return answer() if callable(answer) else answer


class Test(unittest.TestCase):
    def setUp(self):
        self.book = ronkms_receipts.Book()
        self.session = Scripted(self.book)

    def test_good(self):
        for at, (verb, request, answer) in enumerate([
            ("create", {"tenant": "acme"}, {"kid": KID + "#v1"}),
            ("sign", {"kid": KID}, {"kid": KID + "#v1"}),
            ("sign", {"kid_set": [KID2, KID]}, {"kid": KID2 + "#v1"}),
            ("rotate", {"kid": KID + "#v1"}, {"kid": KID + "#v2"}),
            ("unwrap", {"kid": KID}, {"kid": KID + "#v1"}),
            ("derive", {"kid": KID2}, {"kid": KID + "#v1"}),
        ], 1):  # fmt: skip
            self.session.answers = [{**answer, "receipt": receipt(10 + at, at)}]
            self.assertEqual(self.session.call(verb, **request)["receipt"]["key_seq"], at)
        self.assertEqual(self.book._keys, {KID: (6, 16)})

    def test_batch(self):
        items = [{}, {}]
        self.session.answers = [
            {"results": [{"receipt": receipt(10, 1)}, {"receipt": receipt(11, 2)}]},
            {"results": [{"receipt": receipt(12, 3)}]},
            {"results": [{"receipt": receipt(13, 4)}, {}]},
            {"results": [{"receipt": receipt(14, 5)}, {"receipt": receipt(14, 5)}]},
        ]
        self.session.call("sign_batch", kid=KID, items=items)
        for _ in range(2):
            with self.assertRaises(ronkms_receipts.Invalid):
                self.session.call("sign_batch", kid=KID, items=items)
        with self.assertRaises(ronkms_receipts.Rollback):
            self.session.call("sign_batch", kid=KID, items=items)

    def test_refused(self):
        for good, bad, error in (
            (receipt(10, 1), receipt(9, 2), ronkms_receipts.Rollback),
            (receipt(10, 1, 9), receipt(11, 2, 8), ronkms_receipts.Rollback),
            (receipt(10, 2), receipt(11, 1), ronkms_receipts.Rollback),
            (receipt(10, 1), {**receipt(11, 2), "log": "other"}, ronkms_receipts.LogChanged),
            (receipt(10, 1), None, ronkms_receipts.Invalid),
            (receipt(10, 1), {"log_index": 11, "key_seq": 2, "checkpoint_size": 1}, ronkms_receipts.Invalid),
            (receipt(10, 1), {**receipt(11, 2), "log_index": "11"}, ronkms_receipts.Invalid),
            (receipt(10, 1), {**receipt(11, 2), "log_index": 11.0}, ronkms_receipts.Invalid),
            (receipt(10, 1), {**receipt(11, 2), "log_index": True}, ronkms_receipts.Invalid),
            (receipt(10, 1), {**receipt(11, 2), "checkpoint_size": -1}, ronkms_receipts.Invalid),
        ):
            with self.subTest(bad=bad):
                self.setUp()
                self.session.answers = [{"receipt": good}, {"receipt": bad}]
                self.session.call("sign", kid=KID)
                with self.assertRaises(error):
                    self.session.call("sign", kid=KID)

    def test_mark_is_taken_before_the_request(self):
        other = Scripted(self.book)
        other.answers = [{"receipt": receipt(11, 2)}]

        def overtaken():
            other.call("sign", kid=KID)
            return {"receipt": receipt(10, 1)}

        self.session.answers = [overtaken]
        self.session.call("sign", kid=KID)

    def test_stop_is_saved(self):
        with tempfile.TemporaryDirectory() as d, ronkms_receipts.Book.create(pathlib.Path(d, "book")) as book:
            session = Scripted(book)
            session.answers = [{"receipt": receipt(10, 1)}, {"receipt": receipt(10, 2)}]
            session.call("sign", kid=KID)
            with self.assertRaises(ronkms_receipts.Rollback):
                session.call("sign", kid=KID)
            with open(d + "/book") as f:
                self.assertIn("log log stopped 1 11\n", f.read())

    def test_verbs_without_receipt(self):
        for verb in ("get", "list", "verify", "verify_batch"):
            self.session.answers = [{}]
            self.assertEqual(self.session.call(verb), {})


result = unittest.TextTestRunner(stream=sys.stdout).run(unittest.defaultTestLoader.loadTestsFromTestCase(Test))
sys.exit(not result.wasSuccessful() or result.testsRun < 6)
