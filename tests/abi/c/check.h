/* What the test programs share. Each gets the configuration as JSON, the
 * passphrase, and then what it needs; it prints nothing and returns 0 if all
 * is well. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ronkms.h"

#define CHECK(cond)                                                            \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #cond); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

/* WANT checks a call's status; err is in scope. */
#define WANT(want, call)                                                       \
    do {                                                                       \
        ronkms_status got_ = (call);                                           \
        if (got_ != (want)) {                                                  \
            fprintf(stderr, "%s:%d: %s is %s, not %s: %s: %s\n", __FILE__, __LINE__, #call, \
                    ronkms_status_name(got_), ronkms_status_name(want), err.reason, err.message); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

#define TEXT(s) (s), strlen(s)

static const uint8_t digest[RONKMS_DIGEST_SIZE] = {1, 2, 3};

/* open_store opens the store of argv[1] and argv[2]. */
static inline ronkms_kms open_store(char **argv) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_open_options options = RONKMS_OPEN_OPTIONS_INIT;
    ronkms_kms kms;
    options.passphrase = (const uint8_t *)argv[2];
    options.passphrase_len = strlen(argv[2]);
    WANT(RONKMS_OK, ronkms_open(TEXT(argv[1]), &options, &kms, &err));
    CHECK(kms.id != 0);
    return kms;
}

static inline ronkms_session open_session(ronkms_kms kms, const char *token) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_session session;
    WANT(RONKMS_OK, ronkms_session_open(kms, TEXT(token), &session, &err));
    CHECK(session.id != 0);
    return session;
}

/* call performs a verb that must succeed and copies the first kid of its
 * response to kid, of RONKMS_MAX_KID + 1 bytes. */
static inline void call(ronkms_session session, const char *verb, const char *request, char *kid) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_buf out = RONKMS_BUF_INIT;
    WANT(RONKMS_OK, ronkms_call(session, TEXT(verb), TEXT(request), &out, &err));
    CHECK(out.data != NULL && out.len == strlen((const char *)out.data));
    {
        const char *begin = strstr((const char *)out.data, "\"kid\":\"");
        const char *end;
        CHECK(begin != NULL);
        begin += strlen("\"kid\":\"");
        end = strchr(begin, '"');
        CHECK(end != NULL && end - begin <= RONKMS_MAX_KID);
        memcpy(kid, begin, (size_t)(end - begin));
        kid[end - begin] = '\0';
    }
    ronkms_buf_free(&out);
    CHECK(out.data == NULL && out.len == 0);
    ronkms_buf_free(&out);
}

static inline void create(ronkms_session session, const char *alg, const char *op_id, char *kid) {
    char request[512];
    snprintf(request, sizeof request, "{\"op_id\":\"%s\",\"tenant\":\"acme\",\"purpose\":\"test\",\"alg\":\"%s\"}", op_id, alg);
    call(session, "create", request, kid);
}

static inline int all_zero(const void *p, size_t n) {
    const unsigned char *b = p;
    while (n > 0 && b[n - 1] == 0) n--;
    return n == 0;
}

#endif
