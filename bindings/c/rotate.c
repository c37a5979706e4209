/* rotate CONFIG.json TOKEN TENANT: creates a hybrid key and rotates it, and
 * prints the answers. */
#include "example.h"

/* call performs a verb and prints its answer. */
static void call(ronkms_session session, const char *verb, const char *request, ronkms_buf *out) {
    ronkms_error err = RONKMS_ERROR_INIT;
    if (ronkms_call(session, verb, strlen(verb), request, strlen(request), out, &err) != RONKMS_OK) die(verb, &err);
    printf("%s\n", (const char *)out->data);
}

int main(int argc, char **argv) {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_buf key = RONKMS_BUF_INIT, rotated = RONKMS_BUF_INIT;
    ronkms_kms kms;
    ronkms_session session;
    char request[2048], kid[RONKMS_MAX_KID + 1];

    if (argc != 4) {
        fprintf(stderr, "usage: rotate CONFIG.json TOKEN TENANT\n");
        return 2;
    }
    const char *config = read_file(argv[1]), *token = read_file(argv[2]);

    if (ronkms_open(config, strlen(config), NULL, &kms, &err) != RONKMS_OK) die("open", &err);
    if (ronkms_session_open(kms, token, strlen(token), &session, &err) != RONKMS_OK) die("session", &err);
    snprintf(request, sizeof request, "{\"op_id\":\"%s\",\"tenant\":\"%s\",\"purpose\":\"docs\",\"alg\":\"ed25519+ml-dsa-65\"}",
             read_op_id(), argv[3]);
    call(session, "create", request, &key);

    /* A program of more than one line uses a JSON library here. */
    if (sscanf(strstr((const char *)key.data, "\"kid\":\""), "\"kid\":\"%640[^\"]", kid) != 1) return 1;
    snprintf(request, sizeof request, "{\"op_id\":\"%s\",\"kid\":\"%s\"}", read_op_id(), kid);
    call(session, "rotate", request, &rotated);

    ronkms_buf_free(&key);
    ronkms_buf_free(&rotated);
    ronkms_close(kms, NULL);
    return 0;
}
