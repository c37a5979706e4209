/* argv: config passphrase token. The life of a key. */
#include "check.h"

static const char *const algs[] = {"ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"};
static const char *const ops[] = {
    "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002", "00000000-0000-4000-8000-000000000003",
    "00000000-0000-4000-8000-000000000011", "00000000-0000-4000-8000-000000000012", "00000000-0000-4000-8000-000000000013",
    "00000000-0000-4000-8000-000000000031", "00000000-0000-4000-8000-000000000032", "00000000-0000-4000-8000-000000000033",
    "00000000-0000-4000-8000-000000000021", "00000000-0000-4000-8000-000000000022", "00000000-0000-4000-8000-000000000023",
};

/* companion is what the size that suffices may exceed the size of a bundle by:
 * the ml-dsa-65 signature that an ed25519 key may make too. */
static size_t companion(int i, const char *kid) {
    return i == 0 ? 6 + strlen(kid) + strlen("ml-dsa-65") + 3309 : 0;
}

/* capacity shows that a buffer too small has no effect: the receipts of the
 * signatures before and after are neighbours, in the log and for the key. It
 * runs before anything that is recorded without waiting. */
static void capacity(ronkms_session session, int i) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_receipt r1 = RONKMS_RECEIPT_INIT, r2 = RONKMS_RECEIPT_INIT;
    static uint8_t sig[RONKMS_MAX_SIGNATURE];
    char kid[RONKMS_MAX_KID + 1];
    size_t len = 1, needed = 1;

    create(session, algs[i], ops[6 + i], kid);
    WANT(RONKMS_OK, ronkms_sign(session, TEXT(kid), digest, sizeof digest, NULL, 0, sig, sizeof sig, &len, &r1, &err));
    memset(sig, 0xaa, sizeof sig);
    WANT(RONKMS_ERR_BUFFER_TOO_SMALL,
         ronkms_sign(session, TEXT(kid), digest, sizeof digest, NULL, 0, sig, len - 1, &needed, &r2, &err));
    CHECK(needed == len + companion(i, kid) && all_zero(sig, len - 1) && sig[len - 1] == 0xaa && r2.log_index == 0);
    needed = 0;
    WANT(RONKMS_ERR_BUFFER_TOO_SMALL,
         ronkms_sign(session, TEXT(kid), digest, sizeof digest, NULL, 0, NULL, 0, &needed, NULL, &err));
    CHECK(needed == len + companion(i, kid));
    WANT(RONKMS_OK, ronkms_sign(session, TEXT(kid), digest, sizeof digest, NULL, 0, sig, needed, &len, &r2, &err));
    CHECK(len + companion(i, kid) == needed && r2.key_seq == r1.key_seq + 1 && r2.log_index == r1.log_index + 1);
}

static void life(ronkms_session session, int i) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_receipt r1 = RONKMS_RECEIPT_INIT, r2 = RONKMS_RECEIPT_INIT;
    static uint8_t sig[RONKMS_MAX_SIGNATURE], again[RONKMS_MAX_SIGNATURE];
    const uint8_t ctx[] = "context";
    uint8_t other[RONKMS_DIGEST_SIZE] = {9};
    char kid[RONKMS_MAX_KID + 1], next[RONKMS_MAX_KID + 1], base[RONKMS_MAX_KID + 1], request[1024];
    size_t len = 1, needed = 1;

    create(session, algs[i], ops[i], kid);
    create(session, algs[i], ops[i], next); /* the same op_id: the same key */
    CHECK(strcmp(kid, next) == 0);

    WANT(RONKMS_OK, ronkms_sign(session, TEXT(kid), digest, sizeof digest, ctx, sizeof ctx, sig, sizeof sig, &len, &r1, &err));
    CHECK(len > 0 && len <= sizeof sig && sig[0] == 1 && r1.key_seq > 0);
    CHECK(err.code == 0); /* untouched by success */
    WANT(RONKMS_OK, ronkms_verify(session, digest, sizeof digest, ctx, sizeof ctx, sig, len, &err));

    /* One byte of anything changed, and it holds no more. */
    WANT(RONKMS_ERR_INTEGRITY, ronkms_verify(session, other, sizeof other, ctx, sizeof ctx, sig, len, &err));
    CHECK(err.code == RONKMS_ERR_INTEGRITY && strcmp(err.reason, "signature") == 0 && err.message[0] != '\0');
    WANT(RONKMS_ERR_INTEGRITY, ronkms_verify(session, digest, sizeof digest, NULL, 0, sig, len, &err));
    sig[len - 1] ^= 1;
    WANT(RONKMS_ERR_INTEGRITY, ronkms_verify(session, digest, sizeof digest, ctx, sizeof ctx, sig, len, &err));
    sig[len - 1] ^= 1;
    WANT(RONKMS_ERR_INVALID, ronkms_verify(session, digest, sizeof digest, ctx, sizeof ctx, sig, len - 1, &err));
    CHECK(strcmp(err.reason, "bundle") == 0);
    WANT(RONKMS_ERR_INVALID, ronkms_verify(session, digest, sizeof digest, ctx, sizeof ctx, NULL, 0, &err));

    /* Without a version the head signs, and the size is an upper bound. */
    strcpy(base, kid);
    *strchr(base, '#') = '\0';
    WANT(RONKMS_ERR_BUFFER_TOO_SMALL,
         ronkms_sign(session, TEXT(base), digest, sizeof digest, NULL, 0, again, len, &needed, NULL, &err));
    CHECK(needed > len + companion(i, kid) && needed <= len + companion(i, kid) + 2 * 9);
    WANT(RONKMS_OK, ronkms_sign(session, TEXT(base), digest, sizeof digest, NULL, 0, again, needed, &needed, NULL, &err));
    CHECK(needed == len);

    /* Output and inputs in the same memory. */
    memcpy(again, digest, sizeof digest);
    WANT(RONKMS_OK, ronkms_sign(session, TEXT(kid), again, sizeof digest, NULL, 0, again, sizeof again, &needed, NULL, &err));
    WANT(RONKMS_OK, ronkms_verify(session, digest, sizeof digest, NULL, 0, again, needed, &err));

    /* Rotated: the old version signs no more and its signatures hold. */
    snprintf(request, sizeof request, "{\"op_id\":\"%s\",\"kid\":\"%s\"}", ops[3 + i], kid);
    call(session, "rotate", request, next);
    CHECK(strcmp(kid, next) != 0);
    WANT(RONKMS_ERR_STATE, ronkms_sign(session, TEXT(kid), digest, sizeof digest, NULL, 0, again, sizeof again, &needed, &r2, &err));
    CHECK(needed == 0 && all_zero(again, sizeof again) && r2.log_index == 0 && strcmp(err.reason, "stale-version") == 0);
    WANT(RONKMS_OK, ronkms_sign(session, TEXT(next), digest, sizeof digest, NULL, 0, again, sizeof again, &needed, NULL, &err));
    WANT(RONKMS_OK, ronkms_verify(session, digest, sizeof digest, NULL, 0, again, needed, &err));
    WANT(RONKMS_OK, ronkms_verify(session, digest, sizeof digest, ctx, sizeof ctx, sig, len, &err));

    /* Destroyed: nothing signs, and what was signed holds. */
    snprintf(request, sizeof request, "{\"op_id\":\"%s\",\"kid\":\"%s\"}", ops[9 + i], base);
    call(session, "destroy", request, kid);
    WANT(RONKMS_ERR_STATE, ronkms_sign(session, TEXT(base), digest, sizeof digest, NULL, 0, again, sizeof again, &needed, NULL, &err));
    CHECK(strcmp(err.reason, "destroyed") == 0 && (err.flags & RONKMS_ERROR_RETRYABLE) == 0);
    WANT(RONKMS_OK, ronkms_verify(session, digest, sizeof digest, ctx, sizeof ctx, sig, len, &err));
}

int main(int argc, char **argv) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_buf out = RONKMS_BUF_INIT;
    ronkms_kms kms;
    ronkms_session session;
    int i;
    CHECK(argc == 4);
    kms = open_store(argv);
    session = open_session(kms, argv[3]);
    for (i = 0; i < 3; i++) capacity(session, i);
    for (i = 0; i < 3; i++) life(session, i);

    /* There is no export. */
    WANT(RONKMS_ERR_DENIED,
         ronkms_call(session, TEXT("export"), TEXT("{\"kid\":\"acme/test/ed25519/00000000-0000-4000-8000-00000000000a\"}"), &out, &err));
    CHECK(out.data == NULL && out.len == 0 && strcmp(err.reason, "export") == 0);

    WANT(RONKMS_OK, ronkms_session_close(session, &err));
    WANT(RONKMS_OK, ronkms_close(kms, &err));
    return 0;
}
