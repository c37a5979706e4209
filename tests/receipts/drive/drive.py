"""Does on a book what standard input says, a command a line with fields separated by tabs, and answers each with a word."""

import sys

from ronkms_receipts import Book, Corrupt, Invalid, Locked, LogChanged, Rollback

WORDS = {
    Invalid: "invalid", LogChanged: "log-changed", Locked: "locked", Corrupt: "corrupt",
    FileExistsError: "exists", FileNotFoundError: "missing",
}  # fmt: skip

book, marks = None, {}
for line in sys.stdin:
    command, *f = line.rstrip("\n").split("\t")
    word = "ok"
    try:
        if command in ("create", "open"):
            book = getattr(Book, command)(f[0], max_keys=int(f[1]))
        elif command == "mark":
            marks[f[0]] = book.mark()
        elif command == "check":
            numbers = dict(zip(("log_index", "key_seq", "checkpoint_size"), map(int, f[3:])))
            book.check(marks[f[0]], f[1], {"log": f[2], **numbers})
        elif command in ("accept", "forget"):
            getattr(book, command)(f[0])
        elif command in ("save", "close"):
            getattr(book, command)()
        else:
            sys.exit(2)
    except Rollback as e:
        word = f"rollback:{e.reason}"
    except tuple(WORDS) as e:
        word = WORDS[type(e)]
    except OSError:
        word = "file error"
    print(word, flush=True)
