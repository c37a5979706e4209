/*
 * ronkms.h: the C interface of ron-kms, a custody and signing authority.
 *
 * Private keys never leave the library. Every operation is authorized by a
 * capability token and leaves a record in a tamper-evident audit log before
 * its result is returned. Signatures are classical, post-quantum or both, as
 * the key's algorithm says.
 *
 *     ronkms_kms kms;
 *     ronkms_session session;
 *     ronkms_error err = RONKMS_ERROR_INIT;
 *     if (ronkms_open(config, config_len, NULL, &kms, &err) != RONKMS_OK) ...
 *     if (ronkms_session_open(kms, token, token_len, &session, &err) != RONKMS_OK) ...
 *     if (ronkms_sign(session, kid, kid_len, digest, 32, NULL, 0,
 *                     sig, sizeof sig, &sig_len, NULL, &err) != RONKMS_OK) ...
 *
 * CONVENTIONS. They hold for every function unless its comment says otherwise.
 *
 * Threads. Every function may be called from any thread at any time. Closing a
 * handle lets running calls finish; later ones get RONKMS_ERR_HANDLE.
 *
 * Handles. A handle is a struct with one number. 0 is never valid. A number is
 * never used again, so a stale or invented handle is an error and never
 * undefined behaviour. Handles are passed by value and are free to copy; a copy
 * is the same handle.
 *
 * Status. Fallible functions return a ronkms_status: RONKMS_OK, or one of a
 * closed set of errors that a program can branch on. The numbers are never
 * used again for something else. The last parameter, err, may be NULL; it is
 * written only on failure.
 *
 * Lengths. Bytes and text are a pointer and a length in bytes. The pointer may
 * be NULL if and only if the length is 0. Text is UTF-8 and needs no NUL.
 * Inputs are read during the call and not kept; they and the outputs may
 * overlap. A pointer to memory that is not mapped gives RONKMS_ERR_INVALID
 * where the library can notice it; do not rely on it.
 *
 * Outputs are written only on success. On failure lengths are 0, handles are 0
 * and buffers are zeroed. The one exception: with RONKMS_ERR_BUFFER_TOO_SMALL
 * the length holds the size that suffices; nothing was done, recorded or
 * counted, and the call can be repeated with a larger buffer. Where an output
 * is text, a NUL follows it if there is room; the length does not count it.
 *
 * Structs begin with struct_size: initialize them with their INIT macro. A
 * struct shorter than the library's comes from an older caller; what is missing
 * has its default. A longer one comes from a newer caller; it is accepted if
 * what the library does not know is zero, else refused with RONKMS_ERR_ABI.
 *
 * Blocking. Calls that change or use a private key wait for the disk. Every
 * operation is bounded by op_timeout of the configuration (default 10 s).
 *
 * Environment. The library reads no environment variable, writes nothing to
 * standard output or error, and does not end the process, except as the Go
 * runtime does when memory is exhausted or its own state is damaged. Loading it
 * sets the limit for core dumps (RLIMIT_CORE) to 0 for the whole process, so
 * that no crash writes secrets to disk.
 *
 * Fork. The library runs threads, which fork does not copy. In a child of fork,
 * every fallible function returns RONKMS_ERR_FORKED and the parent's handles
 * cannot be used; the child may use exec. Load the library after forking
 * workers. posix_spawn, system and popen are not affected.
 *
 * Signals. Loading installs handlers for SIGSEGV, SIGBUS, SIGFPE, SIGPIPE and
 * SIGURG, which pass on to earlier handlers what is not the library's. A host's
 * own handlers must be installed with SA_ONSTACK.
 *
 * Unload. dlclose succeeds, and the library stays in memory until the process
 * ends.
 *
 * musl. The library needs glibc; where musl is the C library, run the daemon
 * and talk to it over HTTP.
 *
 * Go. A program that has a Go runtime already, Go programs included, must not
 * load this library: use the Go packages or the daemon.
 */
#ifndef RONKMS_H
#define RONKMS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this header's ABI. Within one major number, functions, statuses
 * and fields at the end of structs are only ever added. */
#define RONKMS_ABI_MAJOR 0
#define RONKMS_ABI_MINOR 1
#define RONKMS_ABI_VERSION (((uint32_t)RONKMS_ABI_MAJOR << 16) | (uint32_t)RONKMS_ABI_MINOR)

/* Sizes in bytes. */
#define RONKMS_DIGEST_SIZE 32     /* a BLAKE3 digest */
#define RONKMS_MAX_CONTEXT 255    /* context of ronkms_sign and ronkms_verify */
#define RONKMS_MAX_KID 640        /* a key identifier with its version */
#define RONKMS_MAX_TOKEN 4096     /* a capability token */
#define RONKMS_MAX_CONFIG 65536   /* a configuration */
#define RONKMS_MAX_REQUEST 1048576 /* a request of ronkms_call */
#define RONKMS_MAX_SIGNATURE 8192 /* a bundle of ronkms_sign, of any algorithm */

#if defined(__GNUC__) || defined(__clang__)
#define RONKMS_API __attribute__((visibility("default")))
#define RONKMS_NODISCARD __attribute__((warn_unused_result))
#else
#define RONKMS_API
#define RONKMS_NODISCARD
#endif

/* A ronkms_status is the result of a call. */
typedef int32_t ronkms_status;

enum {
    RONKMS_OK = 0,
    RONKMS_ERR_INVALID = 1,          /* an argument, the request or the configuration is wrong */
    RONKMS_ERR_UNAUTHENTICATED = 2,  /* the token is missing, forged or out of its time */
    RONKMS_ERR_DENIED = 3,           /* the token or the policy does not allow this */
    RONKMS_ERR_NOT_FOUND = 4,        /* there is no such key or version */
    RONKMS_ERR_CONFLICT = 5,         /* another change came first, or op_id was used for another request */
    RONKMS_ERR_STATE = 6,            /* the version is not the head any more, or is destroyed */
    RONKMS_ERR_UNSUPPORTED = 7,      /* this build, backend or key cannot do that */
    RONKMS_ERR_TOO_LARGE = 8,        /* an input exceeds its limit */
    RONKMS_ERR_BUFFER_TOO_SMALL = 9, /* the length holds the size that suffices; nothing was done */
    RONKMS_ERR_BUSY = 10,            /* try again later; or another process has the store open */
    RONKMS_ERR_TIMEOUT = 11,         /* not done in time; a change may have taken effect: retry with its op_id */
    RONKMS_ERR_UNAVAILABLE = 12,     /* the store, its audit log or a service cannot be used */
    RONKMS_ERR_INTEGRITY = 13,       /* the signature does not hold, or the envelope does not open */
    RONKMS_ERR_HANDLE = 14,          /* the handle is not open */
    RONKMS_ERR_FORKED = 15,          /* the process is a child of fork */
    RONKMS_ERR_ABI = 16,             /* header and library do not agree about a struct */
    RONKMS_ERR_INTERNAL = 17         /* a fault in the library */
};

/* A ronkms_kms is an open store. */
typedef struct ronkms_kms {
    uint64_t id;
} ronkms_kms;

/* A ronkms_session is an open capability of one ronkms_kms. */
typedef struct ronkms_session {
    uint64_t id;
} ronkms_session;

/* A ronkms_error says more about a failed call. It needs no release. */
typedef struct ronkms_error {
    uint32_t struct_size;
    ronkms_status code;      /* what the call returned */
    uint32_t flags;          /* RONKMS_ERROR_* */
    uint32_t retry_after_ms; /* milliseconds to wait before trying again; 0: no advice */
    uint64_t audit_index;    /* index of the call's record in the audit log; 0: not known */
    char reason[48];         /* refines code: a stable word of docs/spec/errors.md, such as "token-expired" */
    char request_id[40];     /* names this failure in the log of log_fd */
    char message[256];       /* one line for people; it may change */
} ronkms_error;

#define RONKMS_ERROR_RETRYABLE 1u /* the same call may succeed later */

#define RONKMS_ERROR_INIT {sizeof(ronkms_error), 0, 0, 0, 0, {0}, {0}, {0}}

/* ronkms_open_options are what ronkms_open takes besides the configuration. */
typedef struct ronkms_open_options {
    uint32_t struct_size;
    int32_t log_fd;            /* file descriptor for log lines in JSON; 0 or less: no log. It is
                                * duplicated. Lines are dropped rather than waited for. */
    const uint8_t *passphrase; /* unseals the store; NULL: from passphrase_file of the configuration */
    size_t passphrase_len;
} ronkms_open_options;

#define RONKMS_OPEN_OPTIONS_INIT {sizeof(ronkms_open_options), -1, NULL, 0}

/* A ronkms_receipt says where in the audit log an operation stands. Who keeps
 * the highest values seen can prove a roll-back of the store
 * (docs/spec/receipts.md; bindings/c/ronkms_receipts.h does it). */
typedef struct ronkms_receipt {
    uint32_t struct_size;
    uint32_t reserved;        /* 0 */
    uint64_t log_index;       /* index of the operation's record, from 0 */
    uint64_t key_seq;         /* operations of this key so far, from 1 */
    uint64_t checkpoint_size; /* records under the latest signed checkpoint */
    char log[128];            /* origin of the log, NUL-terminated: numbers of two logs do not compare */
} ronkms_receipt;

#define RONKMS_RECEIPT_INIT {sizeof(ronkms_receipt), 0, 0, 0, 0, {0}}

/* A ronkms_buf is bytes that the library allocated: ronkms_buf_free them. */
typedef struct ronkms_buf {
    uint32_t struct_size;
    uint32_t reserved; /* 0 */
    uint8_t *data;     /* len bytes and a NUL; NULL: nothing */
    size_t len;        /* bytes, without the NUL */
} ronkms_buf;

#define RONKMS_BUF_INIT {sizeof(ronkms_buf), 0, NULL, 0}

/* ronkms_abi_version returns the library's ABI version, major << 16 | minor. A
 * program runs with a library of the same major number and of a minor number
 * that is not less than RONKMS_ABI_MINOR. It works in a forked child.
 * Since ABI 0.1. */
RONKMS_API uint32_t ronkms_abi_version(void);

/* ronkms_version_string returns the library's version, such as "0.1.0", as
 * NUL-terminated text that lives as long as the library.
 * Since ABI 0.1. */
RONKMS_API const char *ronkms_version_string(void);

/* ronkms_status_name returns the name of a status, such as
 * "RONKMS_ERR_DENIED", and "RONKMS_ERR_UNKNOWN" for a number that is none, as
 * NUL-terminated text that lives as long as the library. It works in a forked
 * child.
 * Since ABI 0.1. */
RONKMS_API const char *ronkms_status_name(ronkms_status status);

/* ronkms_open opens the store that a configuration names. config_json is a
 * JSON object with the fields of docs/spec/config.md, such as
 * {"backend":"file","dir":"/var/lib/ron-kms"}. Opening never creates a store.
 *
 * The passphrase is copied and the copy wiped. If the configuration has a bind
 * address, the HTTP control plane listens there until ronkms_close. A store that
 * fails its integrity check opens too; it verifies signatures, and every use of
 * a private key gives RONKMS_ERR_UNAVAILABLE. Several stores may be open.
 *
 * May take seconds: unsealing is slow on purpose, and the audit log is checked.
 * Expect RONKMS_ERR_INVALID (configuration), RONKMS_ERR_UNAVAILABLE (no store,
 * or wrong passphrase), RONKMS_ERR_BUSY (open in another process).
 * options may be NULL.
 * Since ABI 0.1. */
RONKMS_API RONKMS_NODISCARD ronkms_status ronkms_open(const char *config_json, size_t config_len,
                                                      const ronkms_open_options *options,
                                                      ronkms_kms *out, ronkms_error *err);

/* ronkms_close closes a store and its sessions, stops its HTTP listener, waits
 * for running calls, writes the last checkpoint and wipes the secrets. The
 * handle is closed whatever the status; an error says that something was not
 * finished in order. A handle that is 0 or closed gives RONKMS_ERR_HANDLE.
 * Since ABI 0.1. */
RONKMS_API ronkms_status ronkms_close(ronkms_kms kms, ronkms_error *err);

/* ronkms_http_address writes the address where the store's HTTP control plane
 * listens, such as "http://127.0.0.1:9446" or "unix:///run/ron-kms.sock".
 * *out_len is 0 if the configuration has no bind address.
 * Expect RONKMS_ERR_HANDLE, RONKMS_ERR_BUFFER_TOO_SMALL.
 * Since ABI 0.1. */
RONKMS_API RONKMS_NODISCARD ronkms_status ronkms_http_address(ronkms_kms kms, char *out, size_t out_cap,
                                                              size_t *out_len, ronkms_error *err);

/* ronkms_session_open opens a session with a capability token. The token is
 * verified here and not kept; what it allows is checked with each call. One
 * session serves many threads.
 * Expect RONKMS_ERR_UNAUTHENTICATED, RONKMS_ERR_HANDLE.
 * Since ABI 0.1. */
RONKMS_API RONKMS_NODISCARD ronkms_status ronkms_session_open(ronkms_kms kms, const char *token,
                                                              size_t token_len, ronkms_session *out,
                                                              ronkms_error *err);

/* ronkms_session_close closes a session. A handle that is 0 or closed gives
 * RONKMS_ERR_HANDLE.
 * Since ABI 0.1. */
RONKMS_API ronkms_status ronkms_session_close(ronkms_session session, ronkms_error *err);

/* ronkms_sign signs a statement about a digest with every track of a key and
 * writes a signature bundle (docs/spec/bundle.md), which ronkms_verify takes.
 *
 * kid names the key, "tenant/purpose/alg/uuid", with its version "#vN" or
 * without: then the head version signs. payload_b3 is the BLAKE3 digest of the
 * payload, 32 bytes. context, at most 255 bytes, is bound into the signature
 * and must be given again to verify. sig of RONKMS_MAX_SIGNATURE bytes is
 * always large enough. receipt may be NULL.
 *
 * The size that suffices is computed from the text of kid alone, before
 * anything is authorized or looked up, and so tells nothing about the key. It
 * counts the longest version if kid has none, and for an ed25519 key the
 * ml-dsa-65 companion that policy may give it; *sig_len is what was written.
 *
 * A bundle has no place for a validity window, several keys or a raw payload:
 * sign and verify those through ronkms_call.
 *
 * Needs the right kms:sign. Leaves a record in the audit log, which is durable
 * when the call returns. Expect RONKMS_ERR_DENIED, RONKMS_ERR_NOT_FOUND,
 * RONKMS_ERR_STATE.
 * Since ABI 0.1. */
RONKMS_API RONKMS_NODISCARD ronkms_status ronkms_sign(ronkms_session session, const char *kid, size_t kid_len,
                                                      const uint8_t *payload_b3, size_t payload_b3_len,
                                                      const uint8_t *context, size_t context_len,
                                                      uint8_t *sig, size_t sig_cap, size_t *sig_len,
                                                      ronkms_receipt *receipt, ronkms_error *err);

/* ronkms_verify checks a signature bundle against a digest and a context under
 * the policies of server and key. It returns RONKMS_OK if the bundle holds, and
 * RONKMS_ERR_INTEGRITY if it does not: a wrong signature, one of a key that does
 * not exist, and one that policy finds too little. (Over HTTP and through
 * ronkms_call, that is an answer with "ok": false.) A bundle that cannot be
 * parsed gives RONKMS_ERR_INVALID.
 *
 * Needs the right kms:verify, or kms:read unless the server demands the former.
 * It needs neither the disk nor a healthy audit log. Expect
 * RONKMS_ERR_INTEGRITY, RONKMS_ERR_INVALID, RONKMS_ERR_DENIED.
 * Since ABI 0.1. */
RONKMS_API RONKMS_NODISCARD ronkms_status ronkms_verify(ronkms_session session,
                                                        const uint8_t *payload_b3, size_t payload_b3_len,
                                                        const uint8_t *context, size_t context_len,
                                                        const uint8_t *bundle, size_t bundle_len,
                                                        ronkms_error *err);

/* ronkms_call performs any verb with the JSON of its REST endpoint as request
 * and response (docs/spec/rest.md). What out held before is overwritten, not
 * freed; free it with ronkms_buf_free, which wipes it: the responses to wrap
 * and unwrap hold a data key. The verbs are
 *
 *     create, rotate, destroy    change a key
 *     derive                     makes a key from a key; its bytes never leave
 *     get, list                  show keys
 *     sign, sign_batch           also with a validity window, several keys,
 *     verify, verify_batch       or a raw payload
 *     wrap, unwrap, rewrap       seal data keys in envelopes and open them
 *     export                     is always refused
 *
 * An envelope that does not open gives RONKMS_ERR_INTEGRITY, whatever is wrong
 * with it. A batch succeeds as a call even if items of it fail; each item has
 * its own result.
 *
 * Changes carry an op_id: a call repeated with the same one is done once.
 * Needs the right of the verb. Expect RONKMS_ERR_INVALID, RONKMS_ERR_DENIED,
 * RONKMS_ERR_NOT_FOUND, RONKMS_ERR_UNSUPPORTED (a verb that the key does not
 * serve).
 * Since ABI 0.1. */
RONKMS_API RONKMS_NODISCARD ronkms_status ronkms_call(ronkms_session session, const char *verb, size_t verb_len,
                                                      const char *req_json, size_t req_len,
                                                      ronkms_buf *out, ronkms_error *err);

/* ronkms_buf_free zeroes and frees what the library put into buf, and empties
 * it. NULL and an empty buf are allowed. Two threads must not free one buf at
 * the same time. It works in a forked child.
 * Since ABI 0.1. */
RONKMS_API void ronkms_buf_free(ronkms_buf *buf);

#ifdef __cplusplus
}
#endif

#endif /* RONKMS_H */
