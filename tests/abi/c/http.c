/* argv: config passphrase. Prints the address of the control plane, closes the
 * store after a line of input, and lives on until standard input ends. */
#include "check.h"

int main(int argc, char **argv) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_kms kms;
    char address[128];
    size_t len = 0;
    CHECK(argc == 3);
    kms = open_store(argv);
    WANT(RONKMS_ERR_BUFFER_TOO_SMALL, ronkms_http_address(kms, address, 3, &len, &err));
    CHECK(len > 3);
    WANT(RONKMS_OK, ronkms_http_address(kms, address, sizeof address, &len, &err));
    CHECK(strlen(address) == len);
    printf("%s\n", address);
    fflush(stdout);
    CHECK(getchar() == '\n');
    WANT(RONKMS_OK, ronkms_close(kms, &err));
    printf("closed\n");
    fflush(stdout);
    CHECK(getchar() == EOF);
    return 0;
}
