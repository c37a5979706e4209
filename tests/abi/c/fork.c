/* argv: config passphrase token. A child of fork is refused by every function
 * and hangs in none; the parent goes on. */
#define _POSIX_C_SOURCE 200809L
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

extern char **environ;

static void child(ronkms_kms kms, ronkms_session session, ronkms_buf *held) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_kms k = {1};
    ronkms_session s = {1};
    ronkms_buf out = RONKMS_BUF_INIT;
    uint8_t sig[64];
    char address[64] = "x";
    size_t len = 1;
    memset(sig, 0xaa, sizeof sig);
    WANT(RONKMS_ERR_FORKED, ronkms_open(TEXT("{\"backend\":\"inmem\"}"), NULL, &k, &err));
    CHECK(k.id == 0 && err.code == RONKMS_ERR_FORKED && strcmp(err.reason, "forked") == 0 && err.struct_size == sizeof err);
    WANT(RONKMS_ERR_FORKED, ronkms_session_open(kms, TEXT("x"), &s, &err));
    CHECK(s.id == 0);
    WANT(RONKMS_ERR_FORKED, ronkms_sign(session, TEXT("x"), digest, 32, NULL, 0, sig, sizeof sig, &len, NULL, &err));
    CHECK(len == 0 && all_zero(sig, sizeof sig));
    WANT(RONKMS_ERR_FORKED, ronkms_verify(session, digest, 32, NULL, 0, sig, 1, NULL));
    WANT(RONKMS_ERR_FORKED, ronkms_call(session, TEXT("list"), TEXT("{}"), &out, &err));
    len = 1;
    WANT(RONKMS_ERR_FORKED, ronkms_http_address(kms, address, sizeof address, &len, &err));
    CHECK(len == 0 && address[0] == '\0');
    WANT(RONKMS_ERR_FORKED, ronkms_session_close(session, &err));
    WANT(RONKMS_ERR_FORKED, ronkms_close(kms, &err));
    CHECK(ronkms_abi_version() == RONKMS_ABI_VERSION);
    CHECK(strcmp(ronkms_status_name(RONKMS_ERR_FORKED), "RONKMS_ERR_FORKED") == 0);
    CHECK(ronkms_version_string() != NULL);
    ronkms_buf_free(held);
    CHECK(held->data == NULL);
}

int main(int argc, char **argv) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_kms kms;
    ronkms_session session;
    ronkms_buf held = RONKMS_BUF_INIT;
    char kid[RONKMS_MAX_KID + 1];
    int status;
    pid_t pid;
    char *args[] = {(char *)"true", NULL};
    CHECK(argc == 4);
    kms = open_store(argv);
    session = open_session(kms, argv[3]);
    create(session, "ed25519", "00000000-0000-4000-8000-000000000001", kid);
    WANT(RONKMS_OK, ronkms_call(session, TEXT("list"), TEXT("{\"tenant\":\"acme\"}"), &held, &err));

    CHECK((pid = fork()) >= 0);
    if (pid == 0) {
        child(kms, session, &held);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(posix_spawnp(&pid, "true", NULL, NULL, args, environ) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);

    CHECK(held.data != NULL);
    call(session, "list", "{\"tenant\":\"acme\"}", kid);
    ronkms_buf_free(&held);
    WANT(RONKMS_OK, ronkms_close(kms, &err));
    return 0;
}
