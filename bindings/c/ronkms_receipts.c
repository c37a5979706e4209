/* See ronkms_receipts.h. Keys stand in a tree of the C library (search.h), which
 * no choice of kids makes slow, and in a list by when they rose. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* flock */
#endif
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700
#endif

#include "ronkms_receipts.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <search.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER "ron-kms receipts 1\n"
#define MAX_NUMBER INT64_MAX
#define MAX_LINE (RONKMS_RECEIPTS_MAX_KID + 64) /* of the file; no good line is as long */

typedef struct log_state {
    char origin[RONKMS_RECEIPTS_MAX_ORIGIN + 1];
    bool stopped; /* only of the current one */
    uint64_t size, next;
} log_state;

/* A key_state begins with its kid, so that a kid alone can be compared with it. */
typedef struct key_state {
    const char *kid; /* the bytes behind the struct */
    uint64_t seq, index;
    struct key_state *older, *newer;
} key_state;

struct ronkms_receipts {
    char *path, *tmp; /* NULL in memory */
    int lock;         /* -1: none */
    size_t max_keys, num_keys, num_logs;
    log_state logs[RONKMS_RECEIPTS_MAX_LOGS]; /* in the order in which they came to be known */
    log_state *current;
    void *tree; /* of key_state */
    key_state *oldest, *newest;
    uint64_t generation; /* counts changes of the current log by the user */
    bool changed;
};

/* valid_text reports whether s is 1 to max bytes of ASCII without spaces and
 * control characters. */
static bool valid_text(const char *s, size_t max) {
    size_t n = 0;
    for (; s[n] != '\0'; n++) {
        if (n == max || s[n] < 0x21 || s[n] > 0x7e) return false;
    }
    return n > 0;
}

/* parse_number reads the only spelling of a number of at most max. */
static bool parse_number(const char *s, uint64_t max, uint64_t *out) {
    uint64_t n = 0;
    if (*s == '\0' || (s[0] == '0' && s[1] != '\0')) return false;
    for (; *s != '\0'; s++) {
        if (*s < '0' || *s > '9') return false;
        uint64_t digit = (uint64_t)(*s - '0');
        if (n > (max - digit) / 10) return false;
        n = n * 10 + digit;
    }
    *out = n;
    return true;
}

/* base_kid checks the form of a kid, which is not empty, and copies it without
 * its version. */
static bool base_kid(const char *kid, char base[RONKMS_RECEIPTS_MAX_KID + 1]) {
    uint64_t version;
    size_t n = strcspn(kid, "#");
    if (n > RONKMS_RECEIPTS_MAX_KID) return false;
    if (kid[n] == '#' && (kid[n + 1] != 'v' || !parse_number(kid + n + 2, UINT32_MAX, &version) || version == 0)) return false;
    memcpy(base, kid, n);
    base[n] = '\0';
    return valid_text(base, RONKMS_RECEIPTS_MAX_KID);
}

static log_state *find_log(ronkms_receipts *b, const char *origin) {
    for (size_t i = 0; i < b->num_logs; i++) {
        if (strcmp(b->logs[i].origin, origin) == 0) return &b->logs[i];
    }
    return NULL;
}

/* add_log adds a log whose origin is valid, or returns NULL if there are too
 * many. */
static log_state *add_log(ronkms_receipts *b, const char *origin) {
    if (b->num_logs == RONKMS_RECEIPTS_MAX_LOGS) return NULL;
    log_state *l = &b->logs[b->num_logs++];
    memset(l, 0, sizeof *l);
    memcpy(l->origin, origin, strlen(origin) + 1);
    b->changed = true;
    return l;
}

/* by_kid compares what begins with a pointer to a kid: its address is that of
 * the pointer. */
static int by_kid(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static key_state *find_key(const ronkms_receipts *b, const char *kid) {
    key_state *const *node = tfind(&kid, &b->tree, by_kid);
    return node == NULL ? NULL : *node;
}

static void unlink_key(ronkms_receipts *b, key_state *k) {
    *(k->older != NULL ? &k->older->newer : &b->oldest) = k->newer;
    *(k->newer != NULL ? &k->newer->older : &b->newest) = k->older;
}

static void append_key(ronkms_receipts *b, key_state *k) {
    k->older = b->newest;
    k->newer = NULL;
    *(b->newest != NULL ? &b->newest->newer : &b->oldest) = k;
    b->newest = k;
}

static void drop_oldest(ronkms_receipts *b) {
    key_state *k = b->oldest;
    tdelete(k, &b->tree, by_kid);
    unlink_key(b, k);
    free(k);
    b->num_keys--;
}

/* rise remembers a key if it is higher than what is known of it, and forgets
 * what is too much. It is false if there is no memory, and nothing changed. */
static bool rise(ronkms_receipts *b, const char *kid, uint64_t seq, uint64_t index) {
    key_state *k = find_key(b, kid);
    if (k != NULL && seq <= k->seq) return true;
    if (k != NULL) {
        unlink_key(b, k);
    } else {
        size_t n = strlen(kid) + 1;
        k = malloc(sizeof *k + n);
        if (k == NULL) return false;
        k->kid = memcpy(k + 1, kid, n);
        if (tsearch(k, &b->tree, by_kid) == NULL) {
            free(k);
            return false;
        }
        b->num_keys++;
    }
    k->seq = seq;
    k->index = index;
    append_key(b, k);
    b->changed = true;
    if (b->num_keys > b->max_keys) drop_oldest(b);
    return true;
}

/* change makes another log current, or none. */
static void change(ronkms_receipts *b, log_state *current) {
    while (b->oldest != NULL) drop_oldest(b);
    b->current = current;
    b->generation++;
    b->changed = true;
}

ronkms_receipts_result ronkms_receipts_new(size_t max_keys, ronkms_receipts **out_book) {
    if (out_book == NULL || max_keys > RONKMS_RECEIPTS_MAX_KEYS) return RONKMS_RECEIPTS_INVALID;
    ronkms_receipts *b = calloc(1, sizeof *b);
    if (b == NULL) return RONKMS_RECEIPTS_MEMORY;
    b->max_keys = max_keys != 0 ? max_keys : RONKMS_RECEIPTS_DEFAULT_MAX_KEYS;
    b->lock = -1;
    *out_book = b;
    return RONKMS_RECEIPTS_OK;
}

static void free_book(ronkms_receipts *b) {
    while (b->oldest != NULL) drop_oldest(b);
    if (b->lock >= 0) close(b->lock);
    free(b->path);
    free(b->tmp);
    free(b);
}

ronkms_receipts_mark ronkms_receipts_take_mark(const ronkms_receipts *book) {
    ronkms_receipts_mark m = {0, 0, 0};
    if (book == NULL) return m;
    m.generation = book->generation;
    if (book->current != NULL) {
        m.next = book->current->next;
        m.size = book->current->size;
    }
    return m;
}

/* judge is rules 4 to 7. */
static ronkms_receipts_result judge(const ronkms_receipts *b, const ronkms_receipts_mark *mark, const char *kid,
                                    const ronkms_receipts_receipt *r) {
    const log_state *l = b->current;
    bool current = mark->generation == b->generation;
    uint64_t next = current ? mark->next : 0, size = current ? mark->size : 0;
    if (l->stopped) return RONKMS_RECEIPTS_ROLLBACK_STOPPED;
    if (r->log_index < next || r->log_index < size || r->log_index + 1 == l->next) return RONKMS_RECEIPTS_ROLLBACK_INDEX;
    if (r->checkpoint_size < size) return RONKMS_RECEIPTS_ROLLBACK_CHECKPOINT;
    const key_state *k = find_key(b, kid);
    if (k != NULL) {
        bool up = r->key_seq > k->seq && r->log_index > k->index && r->key_seq - k->seq <= r->log_index - k->index;
        bool down = r->key_seq < k->seq && r->log_index < k->index && k->seq - r->key_seq <= k->index - r->log_index;
        if (!up && !down) return RONKMS_RECEIPTS_ROLLBACK_KEY;
    }
    return RONKMS_RECEIPTS_OK;
}

ronkms_receipts_result ronkms_receipts_check(ronkms_receipts *book, const ronkms_receipts_mark *mark, const char *kid,
                                             const ronkms_receipts_receipt *receipt) {
    const ronkms_receipts_receipt *r = receipt;
    char base[RONKMS_RECEIPTS_MAX_KID + 1] = "";
    if (book == NULL || mark == NULL || r == NULL || r->log == NULL) return RONKMS_RECEIPTS_INVALID;
    if (kid != NULL && *kid != '\0' && !base_kid(kid, base)) return RONKMS_RECEIPTS_INVALID;
    if (!valid_text(r->log, RONKMS_RECEIPTS_MAX_ORIGIN)) return RONKMS_RECEIPTS_INVALID;
    if (r->log_index >= MAX_NUMBER || r->key_seq > MAX_NUMBER || r->checkpoint_size > MAX_NUMBER) return RONKMS_RECEIPTS_INVALID;
    if ((r->key_seq == 0) != (base[0] == '\0')) return RONKMS_RECEIPTS_INVALID;

    if (book->current == NULL && find_log(book, r->log) == NULL) {
        log_state *l = add_log(book, r->log);
        if (l == NULL) return RONKMS_RECEIPTS_INVALID;
        book->current = l;
    }
    log_state *l = book->current;
    if (l == NULL || strcmp(l->origin, r->log) != 0) return RONKMS_RECEIPTS_LOG_CHANGED;
    ronkms_receipts_result result = judge(book, mark, base, r);
    if (result != RONKMS_RECEIPTS_OK) {
        if (!l->stopped) book->changed = true;
        l->stopped = true;
        return result;
    }
    if (base[0] != '\0' && !rise(book, base, r->key_seq, r->log_index)) return RONKMS_RECEIPTS_MEMORY;
    if (r->checkpoint_size > l->size) {
        l->size = r->checkpoint_size;
        book->changed = true;
    }
    if (r->log_index >= l->next) {
        l->next = r->log_index + 1;
        book->changed = true;
    }
    return RONKMS_RECEIPTS_OK;
}

ronkms_receipts_result ronkms_receipts_accept(ronkms_receipts *book, const char *origin) {
    if (book == NULL || origin == NULL || !valid_text(origin, RONKMS_RECEIPTS_MAX_ORIGIN)) return RONKMS_RECEIPTS_INVALID;
    log_state *l = find_log(book, origin);
    if (l != NULL && l == book->current) return RONKMS_RECEIPTS_OK;
    if (l == NULL) l = add_log(book, origin);
    if (l == NULL) return RONKMS_RECEIPTS_INVALID;
    if (book->current != NULL) book->current->stopped = false;
    change(book, l);
    return RONKMS_RECEIPTS_OK;
}

ronkms_receipts_result ronkms_receipts_forget(ronkms_receipts *book, const char *origin) {
    if (book == NULL || origin == NULL) return RONKMS_RECEIPTS_INVALID;
    log_state *l = find_log(book, origin);
    if (l == NULL) return RONKMS_RECEIPTS_INVALID;
    if (l == book->current) {
        change(book, NULL);
    } else if (book->current > l) {
        book->current--;
    }
    memmove(l, l + 1, (size_t)(&book->logs[book->num_logs] - (l + 1)) * sizeof *l);
    book->num_logs--;
    book->changed = true;
    return RONKMS_RECEIPTS_OK;
}

/* The file. */

static bool write_text(const ronkms_receipts *b, FILE *f) {
    fputs(HEADER, f);
    for (size_t i = 0; i < b->num_logs; i++) {
        const log_state *l = &b->logs[i];
        const char *status = l->stopped ? "stopped" : l == b->current ? "current" : "left";
        fprintf(f, "log %s %s %" PRIu64 " %" PRIu64 "\n", l->origin, status, l->size, l->next);
    }
    for (const key_state *k = b->oldest; k != NULL; k = k->newer) {
        fprintf(f, "key %s %" PRIu64 " %" PRIu64 "\n", k->kid, k->seq, k->index);
    }
    fputs("end\n", f);
    return fflush(f) == 0 && !ferror(f) && fsync(fileno(f)) == 0;
}

/* sync_folder makes the name of path durable. */
static bool sync_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    size_t n = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
    char *folder = slash == NULL ? strdup(".") : strndup(path, n);
    if (folder == NULL) return false;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    if (fd < 0) return false;
    bool ok = fsync(fd) == 0;
    int why = errno;
    close(fd);
    errno = why;
    return ok;
}

ronkms_receipts_result ronkms_receipts_save(ronkms_receipts *book) {
    if (book == NULL) return RONKMS_RECEIPTS_INVALID;
    if (book->path == NULL || !book->changed) return RONKMS_RECEIPTS_OK;
    /* What an interrupted save left. The lock says that nobody is writing it. */
    if (unlink(book->tmp) != 0 && errno != ENOENT) return RONKMS_RECEIPTS_IO;
    int fd = open(book->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    bool ok = f != NULL && write_text(book, f);
    int why = errno;
    if (f != NULL) {
        if (fclose(f) != 0 && ok) {
            ok = false;
            why = errno;
        }
    } else if (fd >= 0) {
        close(fd);
    }
    errno = why;
    if (ok && rename(book->tmp, book->path) == 0) {
        if (!sync_folder(book->path)) return RONKMS_RECEIPTS_IO;
        book->changed = false;
        return RONKMS_RECEIPTS_OK;
    }
    why = errno;
    if (fd >= 0) unlink(book->tmp);
    errno = why;
    return RONKMS_RECEIPTS_IO;
}

ronkms_receipts_result ronkms_receipts_close(ronkms_receipts *book) {
    if (book == NULL) return RONKMS_RECEIPTS_OK;
    ronkms_receipts_result result = ronkms_receipts_save(book);
    int why = errno;
    free_book(book);
    errno = why;
    return result;
}

/* parse_log and parse_key read the fields behind the first word. */
static bool parse_log(ronkms_receipts *b, char *f[4]) {
    uint64_t size, next;
    bool stopped = strcmp(f[1], "stopped") == 0, current = stopped || strcmp(f[1], "current") == 0;
    if (!current && strcmp(f[1], "left") != 0) return false;
    if (!parse_number(f[2], MAX_NUMBER, &size) || !parse_number(f[3], MAX_NUMBER, &next)) return false;
    if (!valid_text(f[0], RONKMS_RECEIPTS_MAX_ORIGIN) || find_log(b, f[0]) != NULL || (current && b->current != NULL)) return false;
    log_state *l = add_log(b, f[0]);
    if (l == NULL) return false;
    l->size = size;
    l->next = next;
    l->stopped = stopped;
    if (current) b->current = l;
    return true;
}

static ronkms_receipts_result parse_key(ronkms_receipts *b, char *f[3]) {
    uint64_t seq, index;
    if (b->current == NULL || !parse_number(f[1], MAX_NUMBER, &seq) || !parse_number(f[2], MAX_NUMBER, &index) || seq == 0 ||
        index >= b->current->next || !valid_text(f[0], RONKMS_RECEIPTS_MAX_KID) || strchr(f[0], '#') != NULL ||
        find_key(b, f[0]) != NULL) {
        return RONKMS_RECEIPTS_CORRUPT;
    }
    return rise(b, f[0], seq, index) ? RONKMS_RECEIPTS_OK : RONKMS_RECEIPTS_MEMORY;
}

/* read_line reads a line without its end. It is false at the end of the file,
 * at a line that is too long, has no end or has a NUL, and on an error. */
static bool read_line(FILE *f, char line[MAX_LINE]) {
    for (size_t n = 0; n < MAX_LINE; n++) {
        int c = getc(f);
        if (c == EOF || c == '\0') return false;
        if (c == '\n') {
            line[n] = '\0';
            return true;
        }
        line[n] = (char)c;
    }
    return false;
}

/* split cuts a line at its spaces and returns how many fields there are, at
 * most 6. */
static size_t split(char *line, char *fields[6]) {
    size_t n = 0;
    for (;;) {
        fields[n++] = line;
        line = strchr(line, ' ');
        if (line == NULL || n == 6) return n;
        *line++ = '\0';
    }
}

static ronkms_receipts_result read_text(ronkms_receipts *b, FILE *f) {
    char line[MAX_LINE], *fields[6];
    if (!read_line(f, line) || strcmp(line, "ron-kms receipts 1") != 0) return RONKMS_RECEIPTS_CORRUPT;
    for (size_t keys = 0;;) {
        if (!read_line(f, line)) return RONKMS_RECEIPTS_CORRUPT;
        if (strcmp(line, "end") == 0) return getc(f) == EOF ? RONKMS_RECEIPTS_OK : RONKMS_RECEIPTS_CORRUPT;
        size_t n = split(line, fields);
        ronkms_receipts_result result = RONKMS_RECEIPTS_CORRUPT;
        if (n == 5 && strcmp(fields[0], "log") == 0 && keys == 0) {
            if (parse_log(b, fields + 1)) result = RONKMS_RECEIPTS_OK;
        } else if (n == 4 && strcmp(fields[0], "key") == 0 && keys < RONKMS_RECEIPTS_MAX_KEYS) {
            keys++;
            result = parse_key(b, fields + 1);
        }
        if (result != RONKMS_RECEIPTS_OK) return result;
    }
}

/* lock_file takes the lock of a book's file. */
static ronkms_receipts_result lock_file(ronkms_receipts *b, const char *name) {
    int fd = open(name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600), got;
    if (fd < 0) return errno == ENOENT ? RONKMS_RECEIPTS_MISSING : RONKMS_RECEIPTS_IO;
    do {
        got = flock(fd, LOCK_EX | LOCK_NB);
    } while (got != 0 && errno == EINTR);
    if (got == 0) {
        b->lock = fd;
        return RONKMS_RECEIPTS_OK;
    }
    int why = errno;
    close(fd);
    errno = why;
    return why == EWOULDBLOCK ? RONKMS_RECEIPTS_LOCKED : RONKMS_RECEIPTS_IO;
}

static char *joined(const char *a, const char *b) {
    size_t n = strlen(a), m = strlen(b) + 1;
    char *s = malloc(n + m);
    if (s != NULL) {
        memcpy(s, a, n);
        memcpy(s + n, b, m);
    }
    return s;
}

static ronkms_receipts_result read_file(ronkms_receipts *b) {
    int fd = open(b->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? RONKMS_RECEIPTS_MISSING : RONKMS_RECEIPTS_IO;
    FILE *f = fdopen(fd, "r");
    if (f == NULL) {
        int why = errno;
        close(fd);
        errno = why;
        return RONKMS_RECEIPTS_IO;
    }
    ronkms_receipts_result result = read_text(b, f);
    if (ferror(f)) result = RONKMS_RECEIPTS_IO;
    int why = errno;
    fclose(f);
    errno = why;
    b->changed = false;
    return result;
}

static ronkms_receipts_result start_file(ronkms_receipts *b) {
    struct stat st;
    if (lstat(b->path, &st) == 0) return RONKMS_RECEIPTS_EXISTS;
    if (errno != ENOENT) return RONKMS_RECEIPTS_IO;
    b->changed = true;
    return ronkms_receipts_save(b);
}

/* with_file makes a book, locks its file and fills one from the other. */
static ronkms_receipts_result with_file(const char *path, size_t max_keys, ronkms_receipts **out_book,
                                        ronkms_receipts_result (*fill)(ronkms_receipts *)) {
    ronkms_receipts *b = NULL;
    if (path == NULL || *path == '\0' || out_book == NULL) return RONKMS_RECEIPTS_INVALID;
    ronkms_receipts_result result = ronkms_receipts_new(max_keys, &b);
    if (result != RONKMS_RECEIPTS_OK) return result;
    char *lock = joined(path, ".lock");
    b->path = joined(path, "");
    b->tmp = joined(path, ".tmp");
    result = RONKMS_RECEIPTS_MEMORY;
    if (lock != NULL && b->path != NULL && b->tmp != NULL) result = lock_file(b, lock);
    free(lock);
    if (result == RONKMS_RECEIPTS_OK) result = fill(b);
    if (result == RONKMS_RECEIPTS_OK) {
        *out_book = b;
        return RONKMS_RECEIPTS_OK;
    }
    int why = errno;
    free_book(b);
    errno = why;
    return result;
}

ronkms_receipts_result ronkms_receipts_create(const char *path, size_t max_keys, ronkms_receipts **out_book) {
    return with_file(path, max_keys, out_book, start_file);
}

ronkms_receipts_result ronkms_receipts_open(const char *path, size_t max_keys, ronkms_receipts **out_book) {
    return with_file(path, max_keys, out_book, read_file);
}

const char *ronkms_receipts_text(ronkms_receipts_result result) {
    switch (result) {
    case RONKMS_RECEIPTS_OK: return "ok";
    case RONKMS_RECEIPTS_INVALID: return "invalid";
    case RONKMS_RECEIPTS_LOG_CHANGED: return "log-changed";
    case RONKMS_RECEIPTS_ROLLBACK_STOPPED: return "rollback:stopped";
    case RONKMS_RECEIPTS_ROLLBACK_INDEX: return "rollback:index";
    case RONKMS_RECEIPTS_ROLLBACK_CHECKPOINT: return "rollback:checkpoint";
    case RONKMS_RECEIPTS_ROLLBACK_KEY: return "rollback:key";
    case RONKMS_RECEIPTS_EXISTS: return "exists";
    case RONKMS_RECEIPTS_MISSING: return "missing";
    case RONKMS_RECEIPTS_LOCKED: return "locked";
    case RONKMS_RECEIPTS_CORRUPT: return "corrupt";
    case RONKMS_RECEIPTS_IO: return "file error";
    case RONKMS_RECEIPTS_MEMORY: return "no memory";
    }
    return "unknown result";
}
