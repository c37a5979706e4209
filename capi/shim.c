/*
 * The functions of ronkms.h. They are C, not Go, for one reason: after fork the
 * Go runtime must not be entered, and only code outside of it can say so.
 *
 * They dereference nothing before the guard: a wild pointer is found by Go,
 * which turns the fault into an error.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "ronkms.h"

#include "_cgo_export.h"

static atomic_int forked;

static void in_child(void) { atomic_store(&forked, 1); }

__attribute__((constructor)) static void at_load(void) { pthread_atfork(NULL, NULL, in_child); }

static int is_forked(void) { return atomic_load_explicit(&forked, memory_order_relaxed); }

/* refuse fills err for a forked child. */
static ronkms_status refuse(ronkms_error *err) {
    if (err != NULL && err->struct_size >= sizeof *err) {
        const uint32_t size = err->struct_size;
        memset(err, 0, sizeof *err);
        err->struct_size = size;
        err->code = RONKMS_ERR_FORKED;
        strcpy(err->reason, "forked");
        strcpy(err->message, "this process is a child of fork; load the library after fork, or use exec");
    }
    return RONKMS_ERR_FORKED;
}

uint32_t ronkms_abi_version(void) { return RONKMS_ABI_VERSION; }

const char *ronkms_version_string(void) {
    static _Atomic(const char *) version;
    const char *v = atomic_load(&version);
    if (v == NULL && !is_forked()) {
        v = rkgo_version();
        atomic_store(&version, v);
    }
    return v == NULL ? "unknown" : v;
}

const char *ronkms_status_name(ronkms_status status) {
    static const char *const names[] = {
        "RONKMS_OK",
        "RONKMS_ERR_INVALID",
        "RONKMS_ERR_UNAUTHENTICATED",
        "RONKMS_ERR_DENIED",
        "RONKMS_ERR_NOT_FOUND",
        "RONKMS_ERR_CONFLICT",
        "RONKMS_ERR_STATE",
        "RONKMS_ERR_UNSUPPORTED",
        "RONKMS_ERR_TOO_LARGE",
        "RONKMS_ERR_BUFFER_TOO_SMALL",
        "RONKMS_ERR_BUSY",
        "RONKMS_ERR_TIMEOUT",
        "RONKMS_ERR_UNAVAILABLE",
        "RONKMS_ERR_INTEGRITY",
        "RONKMS_ERR_HANDLE",
        "RONKMS_ERR_FORKED",
        "RONKMS_ERR_ABI",
        "RONKMS_ERR_INTERNAL",
    };
    if (status < 0 || (size_t)status >= sizeof names / sizeof names[0]) {
        return "RONKMS_ERR_UNKNOWN";
    }
    return names[status];
}

ronkms_status ronkms_open(const char *config_json, size_t config_len, const ronkms_open_options *options,
                          ronkms_kms *out, ronkms_error *err) {
    if (is_forked()) {
        if (out != NULL) out->id = 0;
        return refuse(err);
    }
    return rkgo_open((char *)config_json, config_len, (ronkms_open_options *)options, out, err);
}

ronkms_status ronkms_close(ronkms_kms kms, ronkms_error *err) {
    if (is_forked()) return refuse(err);
    return rkgo_close(kms, err);
}

ronkms_status ronkms_http_address(ronkms_kms kms, char *out, size_t out_cap, size_t *out_len, ronkms_error *err) {
    if (is_forked()) {
        if (out_len != NULL) *out_len = 0;
        if (out != NULL && out_cap > 0) out[0] = '\0';
        return refuse(err);
    }
    return rkgo_http_address(kms, out, out_cap, out_len, err);
}

ronkms_status ronkms_session_open(ronkms_kms kms, const char *token, size_t token_len, ronkms_session *out,
                                  ronkms_error *err) {
    if (is_forked()) {
        if (out != NULL) out->id = 0;
        return refuse(err);
    }
    return rkgo_session_open(kms, (char *)token, token_len, out, err);
}

ronkms_status ronkms_session_close(ronkms_session session, ronkms_error *err) {
    if (is_forked()) return refuse(err);
    return rkgo_session_close(session, err);
}

ronkms_status ronkms_sign(ronkms_session session, const char *kid, size_t kid_len, const uint8_t *payload_b3,
                          size_t payload_b3_len, const uint8_t *context, size_t context_len, uint8_t *sig,
                          size_t sig_cap, size_t *sig_len, ronkms_receipt *receipt, ronkms_error *err) {
    if (is_forked()) {
        if (sig_len != NULL) *sig_len = 0;
        if (sig != NULL) memset(sig, 0, sig_cap < RONKMS_MAX_SIGNATURE ? sig_cap : RONKMS_MAX_SIGNATURE);
        return refuse(err);
    }
    return rkgo_sign(session, (char *)kid, kid_len, (uint8_t *)payload_b3, payload_b3_len, (uint8_t *)context,
                     context_len, sig, sig_cap, sig_len, receipt, err);
}

ronkms_status ronkms_verify(ronkms_session session, const uint8_t *payload_b3, size_t payload_b3_len,
                            const uint8_t *context, size_t context_len, const uint8_t *bundle, size_t bundle_len,
                            ronkms_error *err) {
    if (is_forked()) return refuse(err);
    return rkgo_verify(session, (uint8_t *)payload_b3, payload_b3_len, (uint8_t *)context, context_len,
                       (uint8_t *)bundle, bundle_len, err);
}

ronkms_status ronkms_call(ronkms_session session, const char *verb, size_t verb_len, const char *req_json,
                          size_t req_len, ronkms_buf *out, ronkms_error *err) {
    if (is_forked()) {
        if (out != NULL) {
            out->data = NULL;
            out->len = 0;
        }
        return refuse(err);
    }
    return rkgo_call(session, (char *)verb, verb_len, (char *)req_json, req_len, out, err);
}

void ronkms_buf_free(ronkms_buf *buf) {
    if (buf == NULL) return;
    if (buf->data != NULL) {
        explicit_bzero(buf->data, buf->len);
        free(buf->data);
    }
    buf->data = NULL;
    buf->len = 0;
}
