"""Receipts remembered, and results refused that show a service put back to an earlier state.

    import ronkms, ronkms_receipts

    with ronkms_receipts.Book.open("/var/lib/app/receipts") as book:
        with kms.session(token, book=book) as session:
            session.sign(kid, digest)  # raises Rollback or LogChanged

or, with results that came another way:

    mark = book.mark()  # before the request is sent
    answer = call(request)
    book.check(mark, kid, answer["receipt"])  # before the result is used

The rules and the file are those of docs/spec/receipts.md, shared with the
implementations in C, Go and Rust. Only the standard library is needed, and a
system with flock for books in files.
"""

from __future__ import annotations

import os
import re
import threading
from typing import Any, Mapping, NamedTuple, Optional, Union

__all__ = ["Book", "Mark", "Invalid", "Rollback", "LogChanged", "Locked", "Corrupt"]

DEFAULT_MAX_KEYS = 100_000
MAX_KEYS = 1_000_000
MAX_LOGS = 64

_MAX_NUMBER = 2**63 - 1
_HEADER = "ron-kms receipts 1"
_ORIGIN = re.compile(r"[!-~]{1,255}")
_KID = re.compile(r"(?P<base>[!-\"$-~]{1,640})(#v(?P<version>[1-9][0-9]{0,9}))?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


class ReceiptError(Exception):
    """A receipt or a book that cannot be used."""


class Invalid(ReceiptError, ValueError):
    """A receipt, kid or origin of the wrong form, or an origin that cannot be accepted or forgotten."""


class Rollback(ReceiptError):
    """The log went back; the result must not be used. reason is "stopped", "index", "checkpoint" or "key"."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(f"rollback of {log} ({reason})")
        self.reason, self.log = reason, log


class LogChanged(ReceiptError):
    """The receipt is not of the current log. If the service began a new one, accept it."""

    def __init__(self, current: Optional[str], got: str) -> None:
        super().__init__(f"log changed from {current} to {got}")
        self.current, self.got = current, got


class Locked(ReceiptError, BlockingIOError):
    """Another process, or another Book of this one, has the file open."""


class Corrupt(ReceiptError, ValueError):
    """The file is not a book."""


class Mark(NamedTuple):
    """What a Book knew before a request was sent."""

    generation: int
    next: int
    size: int


class _Log:
    __slots__ = ("next", "size", "stopped")

    def __init__(self, size: int = 0, next: int = 0, stopped: bool = False) -> None:
        self.size, self.next, self.stopped = size, next, stopped


class Book:
    """What is remembered of one service. Book() is in memory; see create and open.

    Everything may be used from any thread. max_keys, from 1 to 1,000,000, is
    how many keys are remembered.
    """

    def __init__(self, *, max_keys: int = DEFAULT_MAX_KEYS) -> None:
        if not 1 <= max_keys <= MAX_KEYS:
            raise Invalid(f"max_keys {max_keys}")
        self._max_keys = max_keys
        self._path = ""
        self._lock_fd = -1
        self._saving = threading.Lock()  # held while the file is written; taken before _mu
        self._mu = threading.Lock()  # guards what follows
        self._logs: dict[str, _Log] = {}  # in the order in which they came to be known
        self._current: Optional[str] = None
        self._keys: dict[str, tuple[int, int]] = {}  # key_seq, log_index; rose longest ago first
        self._generation = 0  # counts changes of the current log by the user
        self._changes = self._saved = 0

    @classmethod
    def create(cls, path: "Union[str, os.PathLike[str]]", *, max_keys: int = DEFAULT_MAX_KEYS) -> "Book":
        """Make the file of a new, empty book. Raises FileExistsError or Locked."""
        book = cls(max_keys=max_keys)
        book._lock(path)
        try:
            if os.path.lexists(path):
                raise FileExistsError(f"{path} is there")
            book._changes += 1
            book.save()
        except BaseException:
            book._unlock()
            raise
        return book

    @classmethod
    def open(cls, path: "Union[str, os.PathLike[str]]", *, max_keys: int = DEFAULT_MAX_KEYS) -> "Book":
        """Open the book in a file. Raises FileNotFoundError, Locked or Corrupt."""
        book = cls(max_keys=max_keys)
        book._lock(path)
        try:
            with open(path, "rb") as f:
                book._decode(f.read())
            book._saved = book._changes
        except BaseException:
            book._unlock()
            raise
        return book

    def mark(self) -> Mark:
        """Return what the book knows now. Take one at the start of each call."""
        with self._mu:
            log = self._logs[self._current] if self._current is not None else _Log()
            return Mark(self._generation, log.next, log.size)

    def check(self, mark: Mark, kid: str, receipt: Optional[Mapping[str, Any]]) -> None:
        """Compare a call's receipt with its mark and with the book, and remember it.

        kid is the key that the receipt is about, "" if none is. Raises Invalid,
        LogChanged or Rollback; then the result must not be used. Check each
        receipt once.
        """
        kid = _base(kid)
        if not isinstance(receipt, Mapping):
            raise Invalid("there is no receipt")
        origin = receipt.get("log")
        index, seq, size = (receipt.get(name) for name in ("log_index", "key_seq", "checkpoint_size"))
        if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
            raise Invalid("log of the receipt")
        if not (_is_number(index) and index < _MAX_NUMBER and _is_number(seq) and _is_number(size)):
            raise Invalid("a number of the receipt")
        if (seq == 0) != (kid == ""):
            raise Invalid(f"receipt of key {kid!r} with key_seq {seq}")
        with self._mu:
            log = self._pin(origin)
            reason = self._judge(mark, log, kid, index, seq, size)
            if reason:
                if not log.stopped:
                    log.stopped = True
                    self._changes += 1
                raise Rollback(reason, origin)
            if size > log.size:
                log.size = size
                self._changes += 1
            if index >= log.next:
                log.next = index + 1
                self._changes += 1
            if kid:
                self._rise(kid, seq, index)

    def accept(self, origin: str) -> None:
        """Make origin the current log. The one before is left: its keys are forgotten, its sizes stay.

        Accepting the current log changes nothing, so a stopped one remains
        stopped. Raises Invalid if origin is none, or one too many.
        """
        if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
            raise Invalid("origin")
        with self._mu:
            if origin == self._current:
                return
            self._add(origin)
            if self._current is not None:
                self._logs[self._current].stopped = False
            self._change(origin)

    def forget(self, origin: str) -> None:
        """Remove all memory of a log, keys included: the way to go on with a stopped one. Raises Invalid if it is not known."""
        with self._mu:
            if origin not in self._logs:
                raise Invalid(f"no log {origin!r} is remembered")
            del self._logs[origin]
            self._changes += 1
            if origin == self._current:
                self._change(None)

    def save(self) -> None:
        """Write what has changed, and return when it is durable. After an exception the file is the old one."""
        with self._saving:
            self._save()

    def close(self) -> None:
        """Save and unlock the file. Closing twice is allowed."""
        with self._saving:
            if self._lock_fd >= 0:
                try:
                    self._save()
                finally:
                    self._unlock()

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The rules. The caller holds _mu.

    def _pin(self, origin: str) -> _Log:
        """Rules 2 and 3."""
        if self._current is None and origin not in self._logs:
            self._add(origin)
            self._current = origin
        if origin != self._current:
            raise LogChanged(self._current, origin)
        return self._logs[origin]

    def _judge(self, mark: Mark, log: _Log, kid: str, index: int, seq: int, size: int) -> str:
        """Rules 4 to 7: the one that is broken, or ""."""
        if mark.generation != self._generation:
            mark = Mark(0, 0, 0)
        if log.stopped:
            return "stopped"
        if index < mark.next or index < mark.size or index + 1 == log.next:
            return "index"
        if size < mark.size:
            return "checkpoint"
        if kid in self._keys:
            known_seq, known_index = self._keys[kid]
            by, apart = seq - known_seq, index - known_index
            if not (0 < by <= apart or apart <= by < 0):
                return "key"
        return ""

    def _rise(self, kid: str, seq: int, index: int) -> None:
        if kid in self._keys:
            if seq <= self._keys[kid][0]:
                return
            del self._keys[kid]
        self._keys[kid] = (seq, index)
        self._changes += 1
        if len(self._keys) > self._max_keys:
            del self._keys[next(iter(self._keys))]

    def _add(self, origin: str) -> None:
        if origin not in self._logs:
            if len(self._logs) == MAX_LOGS:
                raise Invalid(f"{MAX_LOGS} logs are remembered")
            self._logs[origin] = _Log()
            self._changes += 1

    def _change(self, origin: Optional[str]) -> None:
        self._current = origin
        self._keys.clear()
        self._generation += 1
        self._changes += 1

    # The file.

    def _encode(self) -> bytes:
        lines = [_HEADER]
        for origin, log in self._logs.items():
            status = "stopped" if log.stopped else "current" if origin == self._current else "left"
            lines.append(f"log {origin} {status} {log.size} {log.next}")
        lines.extend(f"key {kid} {seq} {index}" for kid, (seq, index) in self._keys.items())
        lines.append("end\n")
        return "\n".join(lines).encode("ascii")

    def _decode(self, text: bytes) -> None:
        try:
            lines = text.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise Corrupt("it is not ASCII") from None
        if lines[0] != _HEADER or lines[-2:] != ["end", ""]:
            raise Corrupt("its header or its end is missing, or of another version")
        keys = 0
        for number, line in enumerate(lines[1:-2], 2):
            fields = line.split(" ")
            if len(fields) == 5 and fields[0] == "log" and keys == 0:
                ok = self._decode_log(*fields[1:])
            elif len(fields) == 4 and fields[0] == "key" and keys < MAX_KEYS:
                keys += 1
                ok = self._decode_key(*fields[1:])
            else:
                ok = False
            if not ok:
                raise Corrupt(f"line {number}")

    def _decode_log(self, origin: str, status: str, size: str, next: str) -> bool:
        numbers = _numbers(size, next)
        if numbers is None or not _ORIGIN.fullmatch(origin) or origin in self._logs or len(self._logs) == MAX_LOGS:
            return False
        if status in ("current", "stopped") and self._current is None:
            self._current = origin
        elif status != "left":
            return False
        self._logs[origin] = _Log(*numbers, stopped=status == "stopped")
        return True

    def _decode_key(self, kid: str, seq: str, index: str) -> bool:
        numbers, match = _numbers(seq, index), _KID.fullmatch(kid)
        if numbers is None or match is None or match["version"] or kid in self._keys or self._current is None:
            return False
        if numbers[0] == 0 or numbers[1] >= self._logs[self._current].next:
            return False
        self._rise(kid, *numbers)
        return True

    def _save(self) -> None:
        """save; the caller holds _saving."""
        if not self._path:
            return
        if self._lock_fd < 0:
            raise ValueError("the book is closed")
        with self._mu:
            changes = self._changes
            if changes == self._saved:
                return
            text = self._encode()
        _replace(self._path, text)
        with self._mu:
            self._saved = changes

    def _lock(self, path: "Union[str, os.PathLike[str]]") -> None:
        import fcntl  # not everywhere; books in memory work without

        path = os.fspath(path)
        fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Locked(f"{path} is open elsewhere") from None
        except BaseException:
            os.close(fd)
            raise
        self._path, self._lock_fd = path, fd

    def _unlock(self) -> None:
        fd, self._lock_fd = self._lock_fd, -1
        os.close(fd)


def _replace(path: str, text: bytes) -> None:
    """Put text in place of the file, whole and durable or not at all."""
    tmp = path + ".tmp"
    try:
        os.unlink(tmp)  # what an interrupted save left; the lock says that nobody is writing it
    except FileNotFoundError:
        pass
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as f:
            f.write(text)
            f.flush()
            os.fsync(fd)
        os.rename(tmp, path)
    except BaseException:
        os.unlink(tmp)
        raise
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _base(kid: str) -> str:
    """Check the form of a kid and cut its version off. "" is none."""
    if kid == "":
        return ""
    match = _KID.fullmatch(kid) if isinstance(kid, str) else None
    if match is None or int(match["version"] or 0) > 2**32 - 1:
        raise Invalid(f"kid {kid!r}")
    return match["base"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER


def _numbers(*texts: str) -> "Optional[tuple[int, ...]]":
    """Read numbers in their only spelling, or return None."""
    if not all(_NUMBER.fullmatch(t) and int(t) <= _MAX_NUMBER for t in texts):
        return None
    return tuple(map(int, texts))
