/* argv: config passphrase token token-of-another-tenant token-without-sign.
 * Whatever a caller does wrong is an error with the right code, and nothing
 * else. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

#define OP "00000000-0000-4000-8000-000000000001"
#define NO_KEY "acme/test/ed25519/00000000-0000-4000-8000-00000000000a"

static ronkms_error err = RONKMS_ERROR_INIT;
static uint8_t sig[RONKMS_MAX_SIGNATURE];
static size_t len;

static ronkms_status sign(ronkms_session s, const char *kid) {
    memset(sig, 0xaa, sizeof sig);
    len = 1;
    return ronkms_sign(s, TEXT(kid), digest, sizeof digest, NULL, 0, sig, sizeof sig, &len, NULL, &err);
}

/* bad_handles checks every function with a number that is no handle. */
static void bad_handles(uint64_t id) {
    ronkms_kms kms;
    ronkms_session session, other = {1};
    ronkms_buf out = RONKMS_BUF_INIT;
    char address[64] = "x";
    kms.id = id;
    session.id = id;
    WANT(RONKMS_ERR_HANDLE, ronkms_close(kms, &err));
    CHECK(strcmp(err.reason, "handle") == 0 && err.code == RONKMS_ERR_HANDLE);
    WANT(RONKMS_ERR_HANDLE, ronkms_session_close(session, &err));
    WANT(RONKMS_ERR_HANDLE, ronkms_session_open(kms, TEXT("token"), &other, &err));
    CHECK(other.id == 0);
    WANT(RONKMS_ERR_HANDLE, ronkms_http_address(kms, address, sizeof address, &len, &err));
    CHECK(len == 0 && address[0] == '\0');
    WANT(RONKMS_ERR_HANDLE, sign(session, NO_KEY));
    CHECK(len == 0 && all_zero(sig, sizeof sig));
    WANT(RONKMS_ERR_HANDLE, ronkms_verify(session, digest, sizeof digest, NULL, 0, sig, 1, &err));
    WANT(RONKMS_ERR_HANDLE, ronkms_call(session, TEXT("list"), TEXT("{}"), &out, &err));
    CHECK(out.data == NULL && out.len == 0);
    WANT(RONKMS_ERR_HANDLE, ronkms_close(kms, NULL));
}

static void handles(ronkms_kms kms, ronkms_session session) {
    ronkms_kms gone;
    ronkms_error unused = RONKMS_ERROR_INIT;
    ronkms_session closed = session;
    bad_handles(0);
    bad_handles(1);
    bad_handles(UINT64_MAX);
    bad_handles(kms.id + 1000);
    WANT(RONKMS_OK, ronkms_open(TEXT("{\"backend\":\"inmem\"}"), NULL, &gone, &err));
    CHECK(gone.id != kms.id);
    WANT(RONKMS_ERR_UNAUTHENTICATED, ronkms_session_open(gone, TEXT("forged"), &closed, &err));
    CHECK(closed.id == 0);
    WANT(RONKMS_OK, ronkms_close(gone, &unused));
    bad_handles(gone.id);
    /* One kind of handle is not the other. */
    gone.id = session.id;
    WANT(RONKMS_ERR_HANDLE, ronkms_close(gone, &err));
    closed.id = kms.id;
    WANT(RONKMS_ERR_HANDLE, ronkms_session_close(closed, &err));
}

static void null_rules(ronkms_kms kms, ronkms_session s) {
    ronkms_session out;
    ronkms_kms opened;
    ronkms_buf buf = RONKMS_BUF_INIT;
    WANT(RONKMS_ERR_INVALID, ronkms_open(NULL, 2, NULL, &opened, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_open(NULL, 0, NULL, &opened, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_open(TEXT("{\"backend\":\"inmem\"}"), NULL, NULL, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_session_open(kms, TEXT("x"), NULL, &err));
    WANT(RONKMS_ERR_UNAUTHENTICATED, ronkms_session_open(kms, NULL, 0, &out, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_sign(s, NULL, 3, digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(NO_KEY), NULL, 32, NULL, 0, sig, sizeof sig, &len, NULL, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(NO_KEY), digest, 32, NULL, 1, sig, sizeof sig, &len, NULL, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(NO_KEY), digest, 32, NULL, 0, NULL, sizeof sig, &len, NULL, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(NO_KEY), digest, 32, NULL, 0, sig, sizeof sig, NULL, NULL, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(NO_KEY), digest, 31, NULL, 0, sig, sizeof sig, &len, NULL, &err));
    CHECK(strcmp(err.reason, "digest") == 0);
    WANT(RONKMS_ERR_INVALID, ronkms_sign(s, NULL, 0, digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &err));
    CHECK(strcmp(err.reason, "kid") == 0);
    WANT(RONKMS_ERR_TOO_LARGE, ronkms_sign(s, TEXT(NO_KEY), digest, 32, sig, 256, sig, sizeof sig, &len, NULL, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_verify(s, digest, 32, NULL, 0, NULL, 5, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_call(s, TEXT("list"), TEXT("{}"), NULL, &err));
    WANT(RONKMS_ERR_INVALID, ronkms_call(s, TEXT("list"), NULL, 0, &buf, &err));
    ronkms_buf_free(NULL);
}

/* wild gives pointers to memory that does not exist, is not readable, or is
 * not writable, and lengths beyond all memory. The process must live. */
static void wild(ronkms_kms kms, ronkms_session s, const char *kid) {
    void *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *fixed = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *bad[4];
    int i;
    ronkms_receipt before = RONKMS_RECEIPT_INIT, after = RONKMS_RECEIPT_INIT;
    ronkms_buf buf = RONKMS_BUF_INIT;
    ronkms_session out;
    ronkms_kms opened;
    WANT(RONKMS_OK, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, &before, &err));
    CHECK(none != MAP_FAILED && fixed != MAP_FAILED);
    bad[0] = none;
    bad[1] = (void *)(uintptr_t)0x10;
    bad[2] = (void *)(uintptr_t)0xdeadbeefdeadbeef; /* not canonical */
    bad[3] = fixed;
    for (i = 0; i < 4; i++) {
        void *p = bad[i];
        if (p != fixed) {
            WANT(RONKMS_ERR_INVALID, ronkms_open(p, 20, NULL, &opened, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_open(TEXT("{}"), p, &opened, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_session_open(kms, p, 20, &out, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_sign(s, p, 20, digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(kid), p, 32, NULL, 0, sig, sizeof sig, &len, NULL, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(kid), digest, 32, p, 20, sig, sizeof sig, &len, NULL, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_verify(s, p, 32, NULL, 0, sig, 10, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_verify(s, digest, 32, NULL, 0, p, 10, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_call(s, p, 4, TEXT("{}"), &buf, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_call(s, TEXT("list"), p, 20, &buf, &err));
            WANT(RONKMS_ERR_INVALID, ronkms_call(s, TEXT("list"), TEXT("{}"), p, &err));
        }
        /* Outputs are tried before anything is done. */
        WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, p, sizeof sig, &len, NULL, &err));
        WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, p, NULL, &err));
        CHECK(ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, p, &err) != RONKMS_OK);
        CHECK(ronkms_call(s, TEXT("list"), TEXT("{\"tenant\":\"acme\"}"), p, &err) != RONKMS_OK);
        WANT(RONKMS_ERR_INVALID, ronkms_open(TEXT("{\"backend\":\"inmem\"}"), NULL, p, &err));
        CHECK(ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, p) != RONKMS_OK);
    }
    WANT(RONKMS_ERR_INVALID, ronkms_sign(s, TEXT(kid), digest, 32, digest, SIZE_MAX, sig, sizeof sig, &len, NULL, &err));
    CHECK(ronkms_call(s, TEXT("list"), (const char *)digest, SIZE_MAX, &buf, &err) != RONKMS_OK);
    CHECK(ronkms_call(s, TEXT("list"), (const char *)digest, SIZE_MAX / 4, &buf, &err) == RONKMS_ERR_TOO_LARGE);
    /* None of it was taken for a fault of the library: keys still work. */
    WANT(RONKMS_OK, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, &after, &err));
    CHECK(after.key_seq == before.key_seq + 1); /* no failed call signed */
}

static void structs(ronkms_session s, const char *kid) {
    struct {
        ronkms_error known;
        uint64_t next;
    } later = {RONKMS_ERROR_INIT, 0};
    struct {
        ronkms_receipt known;
        uint64_t next;
    } receipt = {RONKMS_RECEIPT_INIT, 0};
    ronkms_error e = RONKMS_ERROR_INIT;
    ronkms_receipt r = RONKMS_RECEIPT_INIT;
    ronkms_buf buf = RONKMS_BUF_INIT;
    ronkms_open_options o = RONKMS_OPEN_OPTIONS_INIT;
    ronkms_kms kms;

    /* An older caller's err: whole fields that fit are written, and no more. */
    memset(&e, 0xaa, sizeof e);
    e.struct_size = offsetof(ronkms_error, message) + 10;
    WANT(RONKMS_ERR_NOT_FOUND, ronkms_sign(s, TEXT(NO_KEY), digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &e));
    CHECK(e.code == RONKMS_ERR_NOT_FOUND && strcmp(e.reason, "not-found") == 0 && strlen(e.request_id) == 38);
    CHECK((unsigned char)e.message[0] == 0xaa && e.struct_size == offsetof(ronkms_error, message) + 10);
    e.struct_size = sizeof e.struct_size;
    memset(&e.code, 0xaa, sizeof e - sizeof e.struct_size);
    WANT(RONKMS_ERR_NOT_FOUND, ronkms_sign(s, TEXT(NO_KEY), digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &e));
    CHECK((uint32_t)e.code == 0xaaaaaaaa);

    /* A newer caller's: accepted while what we do not know is zero. */
    later.known.struct_size = sizeof later;
    WANT(RONKMS_ERR_NOT_FOUND, ronkms_sign(s, TEXT(NO_KEY), digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &later.known));
    CHECK(later.known.code == RONKMS_ERR_NOT_FOUND && later.next == 0 && later.known.struct_size == sizeof later);
    later.next = (uint64_t)1 << 63;
    WANT(RONKMS_ERR_ABI, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &later.known));
    later.known.struct_size = 0;
    WANT(RONKMS_ERR_ABI, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &later.known));
    later.known.struct_size = UINT32_MAX;
    WANT(RONKMS_ERR_ABI, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &later.known));

    receipt.known.struct_size = sizeof receipt;
    WANT(RONKMS_OK, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, &receipt.known, &err));
    CHECK(receipt.known.key_seq > 0);
    receipt.next = 1;
    WANT(RONKMS_ERR_ABI, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, &receipt.known, &err));
    CHECK(strcmp(err.reason, "abi") == 0 && len == 0);
    memset(&r, 0xaa, sizeof r);
    r.struct_size = offsetof(ronkms_receipt, checkpoint_size);
    WANT(RONKMS_OK, ronkms_sign(s, TEXT(kid), digest, 32, NULL, 0, sig, sizeof sig, &len, &r, &err));
    /* The refused call between them did nothing. */
    CHECK(r.key_seq == receipt.known.key_seq + 1 && r.checkpoint_size == 0xaaaaaaaaaaaaaaaa);

    buf.struct_size = 8;
    WANT(RONKMS_ERR_ABI, ronkms_call(s, TEXT("list"), TEXT("{\"tenant\":\"acme\"}"), &buf, &err));

    /* Options: a short one has defaults for the rest, and a long one is held
     * to the same rule. */
    o.struct_size = offsetof(ronkms_open_options, passphrase);
    o.passphrase = (const uint8_t *)1;
    o.passphrase_len = 1;
    WANT(RONKMS_OK, ronkms_open(TEXT("{\"backend\":\"inmem\"}"), &o, &kms, &err));
    WANT(RONKMS_OK, ronkms_close(kms, &err));
    o.struct_size = 0;
    WANT(RONKMS_ERR_ABI, ronkms_open(TEXT("{\"backend\":\"inmem\"}"), &o, &kms, &err));
    CHECK(kms.id == 0);
}

static void requests(ronkms_kms kms, ronkms_session s, const char *kid, const char *stranger, const char *reader) {
    static const char *const bad_json[] = {"", "null", "[]", "{", "{}x", "{\"tenant\":\"acme\",\"tenant\":\"acme\"}",
                                           "{\"Tenant\":\"acme\"}", "{\"tenant\":null}", "{\"tenant\":1}", "{\"x\":1}"};
    static const char *const bad_config[] = {"", "[]", "{", "{\"backend\":\"inmem\",\"x\":1}", "{\"backend\":\"tape\"}", "{\"backend\":\"file\"}",
                                             "{\"backend\":\"inmem\",\"bind\":\"0.0.0.0:0\"}"};
    ronkms_buf buf = RONKMS_BUF_INIT;
    ronkms_session other;
    ronkms_kms bad;
    char at_least[RONKMS_MAX_TOKEN + 2];
    size_t i;
    for (i = 0; i < sizeof bad_json / sizeof *bad_json; i++) {
        WANT(RONKMS_ERR_INVALID, ronkms_call(s, TEXT("list"), TEXT(bad_json[i]), &buf, &err));
        CHECK(buf.data == NULL && strcmp(err.reason, "json") == 0);
    }
    WANT(RONKMS_ERR_UNSUPPORTED, ronkms_call(s, TEXT("lis"), TEXT("{\"tenant\":\"acme\"}"), &buf, &err));
    WANT(RONKMS_ERR_UNSUPPORTED, ronkms_call(s, NULL, 0, TEXT("{\"tenant\":\"acme\"}"), &buf, &err));
    for (i = 0; i < sizeof bad_config / sizeof *bad_config; i++) {
        bad.id = 1;
        WANT(RONKMS_ERR_INVALID, ronkms_open(TEXT(bad_config[i]), NULL, &bad, &err));
        CHECK(bad.id == 0 && strcmp(err.reason, "config") == 0);
    }
    memset(at_least, 'A', sizeof at_least);
    WANT(RONKMS_ERR_UNAUTHENTICATED, ronkms_session_open(kms, TEXT("AAAA"), &other, &err));
    WANT(RONKMS_ERR_UNAUTHENTICATED, ronkms_session_open(kms, at_least, sizeof at_least, &other, &err));
    CHECK(other.id == 0 && strcmp(err.reason, "token-malformed") == 0);

    WANT(RONKMS_ERR_NOT_FOUND, sign(s, NO_KEY));
    CHECK(len == 0 && all_zero(sig, sizeof sig));
    /* A stranger gets the same answer about a key that exists and one that
     * does not, also with a buffer that is too small. */
    other = open_session(kms, stranger);
    WANT(RONKMS_ERR_DENIED, sign(other, kid));
    CHECK(strcmp(err.reason, "tenant-mismatch") == 0 && len == 0 && all_zero(sig, sizeof sig));
    WANT(RONKMS_ERR_DENIED, sign(other, NO_KEY));
    CHECK(strcmp(err.reason, "tenant-mismatch") == 0);
    WANT(RONKMS_ERR_BUFFER_TOO_SMALL, ronkms_sign(other, TEXT(kid), digest, 32, NULL, 0, sig, 1, &len, NULL, &err));
    i = len;
    WANT(RONKMS_ERR_BUFFER_TOO_SMALL, ronkms_sign(other, TEXT(NO_KEY "#v1"), digest, 32, NULL, 0, sig, 1, &len, NULL, &err));
    CHECK(i == len);
    WANT(RONKMS_ERR_DENIED, ronkms_call(other, TEXT("list"), TEXT("{\"tenant\":\"acme\"}"), &buf, &err));
    other = open_session(kms, reader);
    WANT(RONKMS_ERR_DENIED, sign(other, kid));
    CHECK(strcmp(err.reason, "scope-missing") == 0);
    WANT(RONKMS_OK, ronkms_call(other, TEXT("list"), TEXT("{\"tenant\":\"acme\"}"), &buf, &err));
    CHECK(strstr((const char *)buf.data, kid) != NULL);
    ronkms_buf_free(&buf);
    WANT(RONKMS_OK, ronkms_session_close(other, &err));
    WANT(RONKMS_ERR_HANDLE, ronkms_session_close(other, &err));
    WANT(RONKMS_ERR_HANDLE, sign(other, kid));
}

/* opening gives wrong passphrases and a store that is open already, with a log
 * that must name the same request. */
static void opening(char **argv) {
    ronkms_open_options o = RONKMS_OPEN_OPTIONS_INIT;
    ronkms_kms kms;
    int fds[2];
    char line[8192];
    ssize_t n;
    CHECK(pipe(fds) == 0);
    o.log_fd = fds[1];
    o.passphrase = (const uint8_t *)argv[2];
    o.passphrase_len = strlen(argv[2]);
    WANT(RONKMS_ERR_BUSY, ronkms_open(TEXT(argv[1]), &o, &kms, &err));
    CHECK(strcmp(err.reason, "store-busy") == 0 && err.flags == RONKMS_ERROR_RETRYABLE && err.retry_after_ms > 0 && kms.id == 0);
    WANT(RONKMS_ERR_UNAVAILABLE, ronkms_open(TEXT("{\"backend\":\"file\",\"dir\":\"/nonexistent/store\"}"), &o, &kms, &err));
    CHECK(strcmp(err.reason, "store-missing") == 0);
    close(fds[1]); /* the library has let go of its copy too, so the pipe ends */
    n = 0;
    for (;;) {
        ssize_t got = read(fds[0], line + n, sizeof line - 1 - (size_t)n);
        CHECK(got >= 0);
        if (got == 0) break;
        n += got;
    }
    line[n] = '\0';
    CHECK(strstr(line, err.request_id) != NULL && strstr(line, argv[2]) == NULL);
    close(fds[0]);
    o.log_fd = 999;
    WANT(RONKMS_ERR_INVALID, ronkms_open(TEXT(argv[1]), &o, &kms, &err));
}

int main(int argc, char **argv) {
    ronkms_kms kms;
    ronkms_session s;
    char kid[RONKMS_MAX_KID + 1];
    CHECK(argc == 6);
    CHECK(ronkms_abi_version() == RONKMS_ABI_VERSION);
    CHECK(strlen(ronkms_version_string()) > 0 && ronkms_version_string() == ronkms_version_string());
    CHECK(strcmp(ronkms_status_name(18), "RONKMS_ERR_UNKNOWN") == 0 && strcmp(ronkms_status_name(-1), "RONKMS_ERR_UNKNOWN") == 0);
    kms = open_store(argv);
    s = open_session(kms, argv[3]);
    create(s, "ed25519", OP, kid);
    wild(kms, s, kid);
    handles(kms, s);
    null_rules(kms, s);
    structs(s, kid);
    requests(kms, s, kid, argv[4], argv[5]);
    opening(argv);
    WANT(RONKMS_OK, ronkms_close(kms, &err));
    WANT(RONKMS_ERR_HANDLE, ronkms_close(kms, &err));
    WANT(RONKMS_ERR_HANDLE, sign(s, kid)); /* closed with its store */
    WANT(RONKMS_ERR_HANDLE, ronkms_session_close(s, &err));
    return 0;
}
