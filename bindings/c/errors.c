/* errors CONFIG.json TOKEN KID: tells apart what a program can do about a
 * failure, by what happens when it signs with KID. */
#include "example.h"

int main(int argc, char **argv) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_kms kms;
    ronkms_session session;
    uint8_t digest[RONKMS_DIGEST_SIZE] = {0}, sig[RONKMS_MAX_SIGNATURE];
    size_t sig_len;

    if (argc != 4) {
        fprintf(stderr, "usage: errors CONFIG.json TOKEN KID\n");
        return 2;
    }
    const char *config = read_file(argv[1]), *token = read_file(argv[2]), *kid = argv[3];

    if (ronkms_open(config, strlen(config), NULL, &kms, &err) != RONKMS_OK) die("open", &err);
    if (ronkms_session_open(kms, token, strlen(token), &session, &err) != RONKMS_OK) die("session", &err);

    /* The status says what to do; the reason refines it for the log. */
    switch (ronkms_sign(session, kid, strlen(kid), digest, sizeof digest, NULL, 0, sig, sizeof sig, &sig_len, NULL, &err)) {
    case RONKMS_OK:
        printf("signed: %zu bytes\n", sig_len);
        break;
    case RONKMS_ERR_UNAUTHENTICATED:
    case RONKMS_ERR_DENIED:
        printf("another token is needed: %s\n", err.reason);
        break;
    case RONKMS_ERR_STATE:
        printf("the key was rotated or destroyed: %s\n", err.reason);
        break;
    case RONKMS_ERR_NOT_FOUND:
        printf("there is no such key\n");
        break;
    default:
        if (err.flags & RONKMS_ERROR_RETRYABLE) {
            printf("try again in %u ms: %s\n", (unsigned)err.retry_after_ms, err.reason);
        } else {
            printf("%s: %s (%s)\n", ronkms_status_name(err.code), err.message, err.request_id);
        }
    }
    ronkms_close(kms, NULL);
    return 0;
}
