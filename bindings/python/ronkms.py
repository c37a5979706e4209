"""Custody and signing with ron-kms: private keys never leave the library.

    import ronkms

    with ronkms.KMS({"backend": "file", "dir": "/var/lib/ron-kms"}, passphrase=b"...") as kms:
        with kms.session(token) as session:
            key = session.call("create", op_id=str(uuid.uuid4()), tenant="acme", purpose="docs", alg="ed25519+ml-dsa-65")
            bundle = session.sign(key["kid"], digest)
            session.verify(digest, bundle)

Everything may be used from any thread. After a fork, every call in the child
raises Forked: import this module in the worker, not before the fork.

A session with a book of ronkms_receipts refuses results that show the service
put back to an earlier state.

The library is found by load(path), by the variable RONKMS_LIBRARY, or by the
system's loader, at the first use.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from typing import Any, NamedTuple, Optional, Union

__all__ = ["KMS", "Session", "Receipt", "load"]

Buffer = Union[bytes, bytearray, memoryview]

ABI_MAJOR, ABI_MINOR = 0, 1
DIGEST_SIZE = 32
MAX_SIGNATURE = 8192
ERROR_RETRYABLE = 1

# The verbs whose results have no record of their own that a receipt could name.
WITHOUT_RECEIPT = frozenset({"get", "list", "verify", "verify_batch", "export"})


# Errors


class RonKMSError(Exception):
    """A call failed. `reason` is a stable word; `str()` is for people."""

    code = 0
    reason = ""
    request_id = ""
    retryable = False
    retry_after = 0.0  # seconds
    audit_index = 0


class Invalid(RonKMSError, ValueError):
    code = 1


class Unauthenticated(RonKMSError, PermissionError):
    code = 2


class Denied(RonKMSError, PermissionError):
    code = 3


class NotFound(RonKMSError, LookupError):
    code = 4


class Conflict(RonKMSError):
    code = 5


class BadState(RonKMSError):
    code = 6


class Unsupported(RonKMSError):
    code = 7


class TooLarge(RonKMSError, ValueError):
    code = 8


class BufferTooSmall(RonKMSError):
    code = 9


class Busy(RonKMSError):
    code = 10


class Timeout(RonKMSError, TimeoutError):
    code = 11


class Unavailable(RonKMSError):
    code = 12


class InvalidSignature(RonKMSError):
    code = 13


class BadHandle(RonKMSError, ValueError):
    code = 14


class Forked(RonKMSError, RuntimeError):
    code = 15


class ABIMismatch(RonKMSError, RuntimeError):
    code = 16


class Internal(RonKMSError, RuntimeError):
    code = 17


ERRORS = {
    c.code: c
    for c in (
        Invalid, Unauthenticated, Denied, NotFound, Conflict, BadState, Unsupported, TooLarge, BufferTooSmall,
        Busy, Timeout, Unavailable, InvalidSignature, BadHandle, Forked, ABIMismatch, Internal,
    )
}  # fmt: skip


# The C interface: include/ronkms.h


class _Struct(ctypes.Structure):
    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class ronkms_kms(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint64)]


class ronkms_session(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint64)]


class ronkms_error(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("code", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("retry_after_ms", ctypes.c_uint32),
        ("audit_index", ctypes.c_uint64),
        ("reason", ctypes.c_char * 48),
        ("request_id", ctypes.c_char * 40),
        ("message", ctypes.c_char * 256),
    ]


class ronkms_open_options(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("log_fd", ctypes.c_int32),
        ("passphrase", ctypes.c_void_p),
        ("passphrase_len", ctypes.c_size_t),
    ]


class ronkms_receipt(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("log_index", ctypes.c_uint64),
        ("key_seq", ctypes.c_uint64),
        ("checkpoint_size", ctypes.c_uint64),
        ("log", ctypes.c_char * 128),
    ]


class ronkms_buf(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("data", ctypes.c_void_p),
        ("len", ctypes.c_size_t),
    ]


STRUCTS = (ronkms_kms, ronkms_session, ronkms_error, ronkms_open_options, ronkms_receipt, ronkms_buf)

_pointer, _size, _status = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
_error_p = ctypes.POINTER(ronkms_error)
FUNCTIONS = {
    "ronkms_abi_version": (ctypes.c_uint32, []),
    "ronkms_version_string": (ctypes.c_char_p, []),
    "ronkms_status_name": (ctypes.c_char_p, [_status]),
    "ronkms_open": (_status, [_pointer, _size, ctypes.POINTER(ronkms_open_options), ctypes.POINTER(ronkms_kms), _error_p]),
    "ronkms_close": (_status, [ronkms_kms, _error_p]),
    "ronkms_http_address": (_status, [ronkms_kms, _pointer, _size, ctypes.POINTER(_size), _error_p]),
    "ronkms_session_open": (_status, [ronkms_kms, _pointer, _size, ctypes.POINTER(ronkms_session), _error_p]),
    "ronkms_session_close": (_status, [ronkms_session, _error_p]),
    "ronkms_sign": (
        _status,
        [ronkms_session, _pointer, _size, _pointer, _size, _pointer, _size]
        + [_pointer, _size, ctypes.POINTER(_size), ctypes.POINTER(ronkms_receipt), _error_p],
    ),
    "ronkms_verify": (_status, [ronkms_session, _pointer, _size, _pointer, _size, _pointer, _size, _error_p]),
    "ronkms_call": (_status, [ronkms_session, _pointer, _size, _pointer, _size, ctypes.POINTER(ronkms_buf), _error_p]),
    "ronkms_buf_free": (None, [ctypes.POINTER(ronkms_buf)]),
}

_lib: Optional[ctypes.CDLL] = None
_lib_lock = threading.Lock()


def load(path: Optional[str] = None) -> ctypes.CDLL:
    """Load the library, once. A version that does not fit is an ImportError."""
    global _lib
    with _lib_lock:
        if _lib is not None:
            return _lib
        lib = ctypes.CDLL(path or os.environ.get("RONKMS_LIBRARY") or "libronkms.so.0")
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        got = lib.ronkms_abi_version()
        if got >> 16 != ABI_MAJOR or got & 0xFFFF < ABI_MINOR:
            raise ImportError(f"libronkms has ABI {got >> 16}.{got & 0xFFFF}; this module needs {ABI_MAJOR}.{ABI_MINOR}")
        _lib = lib
        return lib


def _check(status: int, err: ronkms_error) -> None:
    if status == 0:
        return
    kind = ERRORS.get(status, RonKMSError)
    e = kind(err.message.decode("utf-8", "replace") or f"status {status}")
    e.code = status
    e.reason = err.reason.decode("ascii", "replace")
    e.request_id = err.request_id.decode("ascii", "replace")
    e.retryable = bool(err.flags & ERROR_RETRYABLE)
    e.retry_after = err.retry_after_ms / 1000
    e.audit_index = err.audit_index
    raise e


class _In:
    """A view of bytes for the length of a call, without a copy if possible."""

    def __init__(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self.len = view.nbytes
        if not self.len:
            self.ptr = None
        elif isinstance(data, bytes):
            self._keep: Any = data
            self.ptr = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
        elif view.readonly or not view.c_contiguous:
            self._keep = view.tobytes()
            self.ptr = ctypes.cast(ctypes.c_char_p(self._keep), ctypes.c_void_p)
        else:
            self._keep = (ctypes.c_char * self.len).from_buffer(view)
            self.ptr = ctypes.cast(self._keep, ctypes.c_void_p)


class Receipt(NamedTuple):
    """Where in the audit log a signature stands."""

    log_index: int
    key_seq: int
    checkpoint_size: int
    log: str  # origin of the audit log


class KMS:
    """An open store.

    config is the configuration as a dict or as JSON text. Without passphrase,
    the library reads passphrase_file of the configuration. log_fd takes log
    lines in JSON.
    """

    def __init__(
        self, config: Union[dict, str], *, passphrase: Optional[Buffer] = None, log_fd: int = -1, library: Optional[str] = None
    ) -> None:
        self._lib = load(library)
        text = _In((config if isinstance(config, str) else json.dumps(config)).encode())
        secret = _In(passphrase if passphrase is not None else b"")
        options = ronkms_open_options(log_fd=log_fd, passphrase=secret.ptr, passphrase_len=secret.len)
        err, self._handle = ronkms_error(), ronkms_kms()
        _check(self._lib.ronkms_open(text.ptr, text.len, options, self._handle, err), err)

    @property
    def http_address(self) -> str:
        """Where the HTTP control plane listens, "" if nowhere."""
        out, n, err = ctypes.create_string_buffer(512), ctypes.c_size_t(), ronkms_error()
        _check(self._lib.ronkms_http_address(self._handle, out, len(out), n, err), err)
        return out.raw[: n.value].decode()

    def session(self, token: str, *, book: Any = None) -> "Session":
        """Open a session with a capability token, or raise Unauthenticated.

        With a book of ronkms_receipts, which sessions may share, each result's
        receipt is checked before it is returned.
        """
        return Session(self, token, book=book)

    def close(self) -> None:
        """Close the store and its sessions. Closing twice is allowed."""
        handle, self._handle = self._handle, ronkms_kms()
        if handle.id:
            err = ronkms_error()
            _check(self._lib.ronkms_close(handle, err), err)

    def __enter__(self) -> "KMS":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """An open capability. KMS.session makes one."""

    def __init__(self, kms: KMS, token: str, *, book: Any = None) -> None:
        self._kms, self._lib, self._book = kms, kms._lib, book
        text, err, self._handle = _In(token.encode()), ronkms_error(), ronkms_session()
        _check(self._lib.ronkms_session_open(kms._handle, text.ptr, text.len, self._handle, err), err)

    def sign(self, kid: str, payload_b3: Buffer, context: Buffer = b"") -> bytes:
        """Sign a BLAKE3 digest and return the bundle that verify takes."""
        return self.sign_with_receipt(kid, payload_b3, context)[0]

    def sign_with_receipt(self, kid: str, payload_b3: Buffer, context: Buffer = b"") -> "tuple[bytes, Receipt]":
        """Sign a BLAKE3 digest of 32 bytes and return bundle and receipt."""
        mark = self._book.mark() if self._book is not None else None
        name, digest, bound = _In(kid.encode()), _In(payload_b3), _In(context)
        out, n, receipt, err = ctypes.create_string_buffer(MAX_SIGNATURE), ctypes.c_size_t(), ronkms_receipt(), ronkms_error()
        status = self._lib.ronkms_sign(
            self._handle, name.ptr, name.len, digest.ptr, digest.len, bound.ptr, bound.len, out, len(out), n, receipt, err
        )
        _check(status, err)
        got = Receipt(receipt.log_index, receipt.key_seq, receipt.checkpoint_size, receipt.log.decode())
        if self._book is not None:
            self._remember(mark, kid, [got._asdict()])
        return out.raw[: n.value], got

    def verify(self, payload_b3: Buffer, bundle: Buffer, context: Buffer = b"") -> None:
        """Return if the bundle holds for the digest, else raise InvalidSignature."""
        digest, bound, sigs, err = _In(payload_b3), _In(context), _In(bundle), ronkms_error()
        status = self._lib.ronkms_verify(
            self._handle, digest.ptr, digest.len, bound.ptr, bound.len, sigs.ptr, sigs.len, err
        )
        _check(status, err)

    def call(self, verb: str, **request: Any) -> dict:
        """Perform any verb with the fields of its REST request.

        With a book, raises Invalid, Rollback or LogChanged of ronkms_receipts
        if the answer must not be used. What was done stays done.
        """
        if self._book is None or verb in WITHOUT_RECEIPT:
            return self._call(verb, request)
        mark = self._book.mark()
        answer = self._call(verb, request)
        kid = request.get("kid") or answer.get("kid", "")
        if verb == "derive":
            kid = answer.get("kid", "")
        elif request.get("kid_set"):
            kid = request["kid_set"][-1]
        receipts = [answer.get("receipt")]
        if verb == "sign_batch":
            receipts = [result.get("receipt") for result in answer["results"]]
            if len(receipts) != len(request["items"]):
                receipts.append(None)
        self._remember(mark, kid, receipts)
        return answer

    def _remember(self, mark: Any, kid: str, receipts: "list[Any]") -> None:
        """Check receipts against the book, which takes them."""
        try:
            for receipt in receipts:
                self._book.check(mark, kid, receipt)
        except Exception as refused:
            try:
                self._book.save()  # that the log was stopped
            except OSError as failed:
                raise refused from failed
            raise

    def _call(self, verb: str, request: "dict[str, Any]") -> dict:
        name, body = _In(verb.encode()), _In(json.dumps(request).encode())
        out, err = ronkms_buf(), ronkms_error()
        try:
            _check(self._lib.ronkms_call(self._handle, name.ptr, name.len, body.ptr, body.len, out, err), err)
            return json.loads(ctypes.string_at(out.data, out.len))
        finally:
            self._lib.ronkms_buf_free(out)

    def close(self) -> None:
        """Close the session. Closing twice, or after the store, is allowed."""
        handle, self._handle = self._handle, ronkms_session()
        if handle.id:
            err = ronkms_error()
            try:
                _check(self._lib.ronkms_session_close(handle, err), err)
            except BadHandle:
                pass  # its store was closed, and with it the session

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
