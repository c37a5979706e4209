/* argv: config passphrase token token-of-another-tenant. The verbs that only
 * ronkms_call has. */
#include "check.h"

#define MAX_TEXT 16384

static ronkms_error err = RONKMS_ERROR_INIT;
static char answer[MAX_TEXT], request[4 * MAX_TEXT], envelope[MAX_TEXT], data_key[MAX_TEXT], other[MAX_TEXT];

/* perform leaves the response in answer, "" if there is none. */
static ronkms_status perform(ronkms_session session, const char *verb) {
    ronkms_buf out = RONKMS_BUF_INIT;
    ronkms_status status = ronkms_call(session, TEXT(verb), TEXT(request), &out, &err);
    answer[0] = '\0';
    if (status == RONKMS_OK) {
        CHECK(out.len < sizeof answer);
        memcpy(answer, out.data, out.len + 1);
    }
    CHECK((status == RONKMS_OK) == (out.data != NULL));
    ronkms_buf_free(&out);
    return status;
}

/* field copies the first string of that name in answer. */
static void field(const char *name, char *to, size_t cap) {
    char key[64];
    const char *begin, *end;
    snprintf(key, sizeof key, "\"%s\":\"", name);
    begin = strstr(answer, key);
    CHECK(begin != NULL);
    begin += strlen(key);
    end = strchr(begin, '"');
    CHECK(end != NULL && (size_t)(end - begin) < cap);
    memcpy(to, begin, (size_t)(end - begin));
    to[end - begin] = '\0';
}

static int times(const char *what) {
    int n = 0;
    const char *p = answer;
    while ((p = strstr(p, what)) != NULL) {
        n++;
        p++;
    }
    return n;
}

static void ask_wrapped(const char *kid, const char *aad) {
    snprintf(request, sizeof request, "{\"kid\":\"%s\",\"wrapped_b64\":\"%s\",\"aad_b64\":\"%s\"}", kid, envelope, aad);
}

static void wrapping(ronkms_session session, ronkms_session stranger, const char *alg, const char *create_op, const char *rotate_op) {
    char kid[RONKMS_MAX_KID + 1], head[RONKMS_MAX_KID + 1];
    char *middle;
    create(session, alg, create_op, kid);
    snprintf(request, sizeof request, "{\"kid\":\"%s\",\"size\":32,\"aad_b64\":\"YQ==\"}", kid);
    WANT(RONKMS_OK, perform(session, "wrap"));
    field("wrapped_b64", envelope, sizeof envelope);
    field("plaintext_key_b64", data_key, sizeof data_key);
    CHECK(strlen(data_key) == 44);

    ask_wrapped(kid, "YQ==");
    WANT(RONKMS_OK, perform(session, "unwrap"));
    field("plaintext_key_b64", other, sizeof other);
    CHECK(strcmp(other, data_key) == 0);

    /* Whatever is wrong with an envelope gives one and the same error. */
    ask_wrapped(kid, "Yg==");
    WANT(RONKMS_ERR_INTEGRITY, perform(session, "unwrap"));
    CHECK(strcmp(err.reason, "unwrap") == 0 && strstr(err.message, data_key) == NULL);
    middle = envelope + strlen(envelope) / 2;
    *middle = *middle == 'A' ? 'B' : 'A';
    ask_wrapped(kid, "YQ==");
    WANT(RONKMS_ERR_INTEGRITY, perform(session, "unwrap"));
    CHECK(strcmp(err.reason, "unwrap") == 0);

    /* A key given is the key returned, to nobody else, and rewrap does not
     * show it. */
    snprintf(request, sizeof request, "{\"kid\":\"%s\",\"plaintext_key_b64\":\"%s\"}", kid, data_key);
    WANT(RONKMS_OK, perform(session, "wrap"));
    CHECK(strstr(answer, data_key) == NULL);
    field("wrapped_b64", envelope, sizeof envelope);
    *strchr(kid, '#') = '\0';
    snprintf(request, sizeof request, "{\"op_id\":\"%s\",\"kid\":\"%s\"}", rotate_op, kid);
    call(session, "rotate", request, head);
    snprintf(request, sizeof request, "{\"kid\":\"%s\",\"wrapped_b64\":\"%s\"}", kid, envelope);
    WANT(RONKMS_ERR_DENIED, perform(stranger, "unwrap"));
    WANT(RONKMS_OK, perform(session, "rewrap"));
    CHECK(strstr(answer, data_key) == NULL && strstr(answer, "#v2\"") != NULL);
    field("wrapped_b64", other, sizeof other);
    CHECK(strcmp(other, envelope) != 0);
    strcpy(envelope, other);
    snprintf(request, sizeof request, "{\"kid\":\"%s\",\"wrapped_b64\":\"%s\"}", kid, envelope);
    WANT(RONKMS_OK, perform(session, "unwrap"));
    field("plaintext_key_b64", other, sizeof other);
    CHECK(strcmp(other, data_key) == 0);
}

/* signing checks sign, sign_batch and verify_batch with one key. */
static void signing(ronkms_session session, const char *kid) {
    static const char b3[] = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    static uint8_t sig[RONKMS_MAX_SIGNATURE];
    size_t needed = 0, len = 0;
    char *sigs, *end;
    WANT(RONKMS_ERR_BUFFER_TOO_SMALL, ronkms_sign(session, TEXT(kid), digest, sizeof digest, NULL, 0, sig, 1, &needed, NULL, &err));
    CHECK(needed > 3309 && needed <= sizeof sig);
    WANT(RONKMS_OK, ronkms_sign(session, TEXT(kid), digest, sizeof digest, NULL, 0, sig, needed, &len, NULL, &err));
    WANT(RONKMS_OK, ronkms_verify(session, digest, sizeof digest, NULL, 0, sig, len, &err));

    snprintf(request, sizeof request, "{\"kid\":\"%s\",\"items\":[{\"payload_b3\":\"%s\"},{\"payload_b3\":\"%s\"},{\"payload_b3\":\"x\"}]}", kid, b3, b3);
    WANT(RONKMS_OK, perform(session, "sign_batch"));
    CHECK(times("\"receipt\"") == 3 && times("\"BadRequest\"") == 1);
    sigs = strstr(answer, "\"sigs\":[");
    CHECK(sigs != NULL);
    end = strstr(sigs, "]");
    CHECK(end != NULL);
    end[1] = '\0';
    snprintf(request, sizeof request, "{\"items\":[{\"payload_b3\":\"%s\",%s}]}", b3, sigs);
    WANT(RONKMS_OK, perform(session, "verify_batch"));
    CHECK(strncmp(answer, "{\"ok\":true", 10) == 0);
}

int main(int argc, char **argv) {
    ronkms_kms kms;
    ronkms_session session, stranger;
    char parent[RONKMS_MAX_KID + 1], child[RONKMS_MAX_KID + 1], again[RONKMS_MAX_KID + 1], companion[RONKMS_MAX_KID + 1];
    uint8_t sig[1];
    size_t needed = 1;
    CHECK(argc == 5);
    kms = open_store(argv);
    session = open_session(kms, argv[3]);
    stranger = open_session(kms, argv[4]);
    wrapping(session, stranger, "aes-256-gcm", "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002");
    wrapping(session, stranger, "x25519+ml-kem-768", "00000000-0000-4000-8000-000000000003", "00000000-0000-4000-8000-000000000004");

    /* The same parent and context give the same child, which signs. */
    create(session, "hkdf-sha256", "00000000-0000-4000-8000-000000000005", parent);
    snprintf(request, sizeof request, "{\"op_id\":\"00000000-0000-4000-8000-000000000006\",\"kid\":\"%s\",\"context\":\"ci\",\"alg\":\"ed25519\"}", parent);
    WANT(RONKMS_OK, perform(session, "derive"));
    field("kid", child, sizeof child);
    snprintf(request, sizeof request, "{\"op_id\":\"00000000-0000-4000-8000-000000000007\",\"kid\":\"%s\",\"context\":\"ci\",\"alg\":\"ed25519\"}", parent);
    WANT(RONKMS_OK, perform(session, "derive"));
    field("kid", again, sizeof again);
    CHECK(strcmp(child, again) == 0 && strcmp(child, parent) != 0);
    signing(session, child);

    /* An ed25519 key with its companion. */
    snprintf(request, sizeof request, "{\"op_id\":\"00000000-0000-4000-8000-000000000008\",\"tenant\":\"acme\",\"purpose\":\"test\","
                                      "\"alg\":\"ed25519\",\"policy\":{\"produce_hybrid\":true}}");
    WANT(RONKMS_OK, perform(session, "create"));
    field("kid", companion, sizeof companion);
    signing(session, companion);

    /* No key has two uses. */
    WANT(RONKMS_ERR_UNSUPPORTED, ronkms_sign(session, TEXT(parent), digest, sizeof digest, NULL, 0, sig, sizeof sig, &needed, NULL, &err));
    CHECK(needed == 0);
    snprintf(request, sizeof request, "{\"kid\":\"%s\",\"size\":32}", child);
    WANT(RONKMS_ERR_UNSUPPORTED, perform(session, "wrap"));

    /* A raw payload does not leave the process, so it is taken here. */
    snprintf(request, sizeof request, "{\"op_id\":\"00000000-0000-4000-8000-000000000009\",\"tenant\":\"acme\",\"purpose\":\"test\","
                                      "\"alg\":\"ed25519\",\"scheme\":\"raw\"}");
    WANT(RONKMS_OK, perform(session, "create"));
    field("kid", companion, sizeof companion);
    snprintf(request, sizeof request, "{\"kid\":\"%s\",\"payload_b64\":\"cGF5bG9hZA==\"}", companion);
    WANT(RONKMS_OK, perform(session, "sign"));

    WANT(RONKMS_OK, ronkms_close(kms, &err));
    return 0;
}
