/* sign_verify CONFIG.json TOKEN KID DIGEST_HEX: signs a BLAKE3 digest with a
 * key of a store, and verifies what it signed. */
#include "example.h"

int main(int argc, char **argv) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_receipt receipt = RONKMS_RECEIPT_INIT;
    ronkms_kms kms;
    ronkms_session session;
    uint8_t digest[RONKMS_DIGEST_SIZE], sig[RONKMS_MAX_SIGNATURE];
    size_t sig_len;

    if (argc != 5) {
        fprintf(stderr, "usage: sign_verify CONFIG.json TOKEN KID DIGEST_HEX\n");
        return 2;
    }
    const char *config = read_file(argv[1]), *token = read_file(argv[2]), *kid = argv[3];
    read_digest(argv[4], digest);

    if (ronkms_open(config, strlen(config), NULL, &kms, &err) != RONKMS_OK) die("open", &err);
    if (ronkms_session_open(kms, token, strlen(token), &session, &err) != RONKMS_OK) die("session", &err);
    if (ronkms_sign(session, kid, strlen(kid), digest, sizeof digest, NULL, 0, sig, sizeof sig, &sig_len, &receipt,
                    &err) != RONKMS_OK) die("sign", &err);
    if (ronkms_verify(session, digest, sizeof digest, NULL, 0, sig, sig_len, &err) != RONKMS_OK) die("verify", &err);
    ronkms_close(kms, NULL);

    printf("%zu bytes signed and verified; record %llu of the audit log\n", sig_len, (unsigned long long)receipt.log_index);
    return 0;
}
