/* Receipts remembered, and results refused that show a ron-kms service put back
 * to an earlier state. Two files to compile into a program, C11 and POSIX, without
 * dependencies and without globals. The rules and the file are those of
 * docs/spec/receipts.md, shared with the implementations in Go, Python and Rust.
 *
 *     ronkms_receipts *book;
 *     ronkms_receipts_open("/var/lib/app/receipts", 0, &book);
 *     ...
 *     ronkms_receipts_mark mark = ronkms_receipts_take_mark(book); // before the request is sent
 *     // the call
 *     result = ronkms_receipts_check(book, &mark, kid, &receipt); // before its result is used
 *     ...
 *     ronkms_receipts_close(book);
 *
 * Conventions: strings end with a NUL and are copied. Outputs are written on
 * success only. NULL where a pointer is needed is RONKMS_RECEIPTS_INVALID.
 *
 * Threads: one call at a time on a book. Whoever shares one locks around each
 * call, and not around the request. After a fork, only one of the two
 * processes may go on using the book. */
#ifndef RONKMS_RECEIPTS_H
#define RONKMS_RECEIPTS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define RONKMS_RECEIPTS_MUST_CHECK __attribute__((warn_unused_result))
#else
#define RONKMS_RECEIPTS_MUST_CHECK
#endif

#define RONKMS_RECEIPTS_DEFAULT_MAX_KEYS 100000
#define RONKMS_RECEIPTS_MAX_KEYS 1000000
#define RONKMS_RECEIPTS_MAX_LOGS 64
#define RONKMS_RECEIPTS_MAX_ORIGIN 255 /* bytes, without the NUL */
#define RONKMS_RECEIPTS_MAX_KID 640    /* bytes, without version and NUL */

/* A ronkms_receipts_result is the outcome of a call. Numbers are never reused. */
typedef enum ronkms_receipts_result {
    RONKMS_RECEIPTS_OK = 0,
    RONKMS_RECEIPTS_INVALID = 1,             /* form of a receipt, kid or origin; an origin that cannot be accepted or forgotten */
    RONKMS_RECEIPTS_LOG_CHANGED = 2,         /* rule 3: not the current log */
    RONKMS_RECEIPTS_ROLLBACK_STOPPED = 3,    /* rule 4: an earlier receipt broke one of the next three */
    RONKMS_RECEIPTS_ROLLBACK_INDEX = 4,      /* rule 5 */
    RONKMS_RECEIPTS_ROLLBACK_CHECKPOINT = 5, /* rule 6 */
    RONKMS_RECEIPTS_ROLLBACK_KEY = 6,        /* rule 7 */
    RONKMS_RECEIPTS_EXISTS = 7,              /* the file to create is there */
    RONKMS_RECEIPTS_MISSING = 8,             /* the file to open is not there */
    RONKMS_RECEIPTS_LOCKED = 9,              /* the file is open elsewhere */
    RONKMS_RECEIPTS_CORRUPT = 10,            /* the file is not a book */
    RONKMS_RECEIPTS_IO = 11,                 /* errno says why */
    RONKMS_RECEIPTS_MEMORY = 12              /* there is no memory */
} ronkms_receipts_result;

/* A ronkms_receipts is a book: what is remembered of one service. */
typedef struct ronkms_receipts ronkms_receipts;

/* A ronkms_receipts_mark is what a book knew before a request was sent. Zeros
 * know nothing. Its fields are the library's. */
typedef struct ronkms_receipts_mark {
    uint64_t generation;
    uint64_t next;
    uint64_t size;
} ronkms_receipts_mark;

/* A ronkms_receipts_receipt is the receipt of a result. */
typedef struct ronkms_receipts_receipt {
    const char *log;          /* origin of the log */
    uint64_t log_index;       /* index of the operation's record, from 0 */
    uint64_t key_seq;         /* records of the key so far, from 1; 0 if no key is concerned */
    uint64_t checkpoint_size; /* records under the latest checkpoint */
} ronkms_receipts_receipt;

/* ronkms_receipts_new makes an empty book in memory. max_keys is how many keys
 * are remembered, at most RONKMS_RECEIPTS_MAX_KEYS; 0 is the default. */
RONKMS_RECEIPTS_MUST_CHECK ronkms_receipts_result ronkms_receipts_new(size_t max_keys, ronkms_receipts **out_book);

/* ronkms_receipts_create makes the file of a new, empty book and opens it.
 * Expect RONKMS_RECEIPTS_EXISTS, RONKMS_RECEIPTS_LOCKED, RONKMS_RECEIPTS_IO. */
RONKMS_RECEIPTS_MUST_CHECK ronkms_receipts_result ronkms_receipts_create(const char *path, size_t max_keys,
                                                                         ronkms_receipts **out_book);

/* ronkms_receipts_open opens the book in a file. Expect RONKMS_RECEIPTS_MISSING,
 * RONKMS_RECEIPTS_LOCKED, RONKMS_RECEIPTS_CORRUPT, RONKMS_RECEIPTS_IO. */
RONKMS_RECEIPTS_MUST_CHECK ronkms_receipts_result ronkms_receipts_open(const char *path, size_t max_keys,
                                                                       ronkms_receipts **out_book);

/* ronkms_receipts_take_mark returns what the book knows now, zeros if it is
 * NULL. Take one at the start of each call. */
ronkms_receipts_mark ronkms_receipts_take_mark(const ronkms_receipts *book);

/* ronkms_receipts_check compares the receipt of a call with its mark and with
 * what the book knows, and remembers it. kid is the key that the receipt is about,
 * with or without a version; NULL or "" if none is. Unless it returns
 * RONKMS_RECEIPTS_OK, the result must not be used. Check each receipt once. */
RONKMS_RECEIPTS_MUST_CHECK ronkms_receipts_result ronkms_receipts_check(ronkms_receipts *book, const ronkms_receipts_mark *mark,
                                                                        const char *kid, const ronkms_receipts_receipt *receipt);

/* ronkms_receipts_accept makes origin the current log. The one before is left: its
 * sizes stay, its keys are forgotten. Accepting the current log changes nothing,
 * so a stopped one remains stopped. */
RONKMS_RECEIPTS_MUST_CHECK ronkms_receipts_result ronkms_receipts_accept(ronkms_receipts *book, const char *origin);

/* ronkms_receipts_forget removes all memory of a log, keys included: the way to
 * go on with a stopped one. RONKMS_RECEIPTS_INVALID if it is not known. */
RONKMS_RECEIPTS_MUST_CHECK ronkms_receipts_result ronkms_receipts_forget(ronkms_receipts *book, const char *origin);

/* ronkms_receipts_save writes what has changed, and returns when it is durable.
 * On RONKMS_RECEIPTS_IO the file is the old one. In memory it does nothing. */
RONKMS_RECEIPTS_MUST_CHECK ronkms_receipts_result ronkms_receipts_save(ronkms_receipts *book);

/* ronkms_receipts_close saves, unlocks and frees the book, whatever it returns.
 * NULL is allowed. */
ronkms_receipts_result ronkms_receipts_close(ronkms_receipts *book);

/* ronkms_receipts_text returns a few words about a result, never NULL. */
const char *ronkms_receipts_text(ronkms_receipts_result result);

#ifdef __cplusplus
}
#endif

#endif
