/*
 * capi.c: the C side of the benchmark. It signs through the C ABI on a durable
 * store, and in the same rounds flushes a file of its own
 * on the same disk, so that both meet the same conditions.
 *
 *   capi ROUNDS CONFIG.json TOKEN-FILE SCRATCH-FILE NAME...
 *
 * It prints "name nanoseconds" for each operation, of those that are named.
 */
#define _GNU_SOURCE
#include <ronkms.h>

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, FILE_SIZE = 16 << 20, PER_ROUND = 10 };

static void check(ronkms_status status, const char *what, const ronkms_error *err)
{
    if (status == RONKMS_OK)
        return;
    fprintf(stderr, "capi: %s: %s: %s\n", what, ronkms_status_name(status), err->message);
    exit(1);
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static char *read_file(const char *name, size_t *len)
{
    FILE *f = fopen(name, "rb");
    char *buf = malloc(65536);
    if (f == NULL || buf == NULL)
        exit(1);
    *len = fread(buf, 1, 65536, f);
    fclose(f);
    while (*len > 0 && buf[*len - 1] == '\n')
        --*len;
    return buf;
}

/* create makes a key and returns its kid. */
static char *create(ronkms_session session, const char *op_id, const char *alg)
{
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_buf out = RONKMS_BUF_INIT;
    char request[512];
    snprintf(request, sizeof request, "{\"op_id\":\"%s\",\"tenant\":\"bench\",\"purpose\":\"bench\",\"alg\":\"%s\"}", op_id, alg);
    check(ronkms_call(session, "create", 6, request, strlen(request), &out, &err), "create", &err);
    char *at = strstr((char *)out.data, "\"kid\":\"") + 7;
    *strchr(at, '#') = '\0';
    char *kid = strdup(at);
    ronkms_buf_free(&out);
    return kid;
}

static uint8_t digest[RONKMS_DIGEST_SIZE], sig[RONKMS_MAX_SIGNATURE];
static size_t sig_len;

/* sign signs n times; without a name, it prints nothing. */
static void sign(ronkms_session session, const char *kid, const char *name, int n)
{
    ronkms_error err = RONKMS_ERROR_INIT;
    for (int i = 0; i < n; i++) {
        digest[0]++;
        int64_t start = now();
        check(ronkms_sign(session, kid, strlen(kid), digest, sizeof digest, NULL, 0, sig, sizeof sig, &sig_len, NULL, &err),
              "sign", &err);
        if (name != NULL)
            printf("%s %lld\n", name, (long long)(now() - start));
    }
}

static void verify(ronkms_session session, const char *name)
{
    ronkms_error err = RONKMS_ERROR_INIT;
    for (int i = 0; i < PER_ROUND; i++) {
        int64_t start = now();
        check(ronkms_verify(session, digest, sizeof digest, NULL, 0, sig, sig_len, &err), "verify", &err);
        printf("%s %lld\n", name, (long long)(now() - start));
    }
}

static bool named(int argc, char **argv, const char *name)
{
    for (int i = 5; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return false;
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: capi ROUNDS CONFIG.json TOKEN-FILE SCRATCH-FILE NAME...\n");
        return 2;
    }
    size_t config_len, token_len;
    char *config = read_file(argv[2], &config_len), *token = read_file(argv[3], &token_len);
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_kms kms;
    ronkms_session session;
    check(ronkms_open(config, config_len, NULL, &kms, &err), "open", &err);
    check(ronkms_session_open(kms, token, token_len, &session, &err), "session", &err);
    char *classical = create(session, "00000000-0000-4000-8000-000000000001", "ed25519");
    char *hybrid = create(session, "00000000-0000-4000-8000-000000000002", "ed25519+ml-dsa-65");

    /* The audit log's own pattern: overwrite blocks that were written before. */
    int fd = open(argv[4], O_RDWR | O_CREAT | O_TRUNC, 0600);
    static char block[BLOCK];
    for (int i = 0; i < FILE_SIZE / BLOCK; i++)
        if (write(fd, block, BLOCK) != BLOCK)
            return 1;
    if (fsync(fd) != 0)
        return 1;

    bool disk = named(argc, argv, "disk.fdatasync"), with_classical = named(argc, argv, "capi.sign.ed25519.durable");
    bool with_hybrid = named(argc, argv, "capi.sign.hybrid.durable"), with_verify = named(argc, argv, "capi.verify.hybrid");
    int rounds = atoi(argv[1]);
    off_t at = 0;
    for (int r = 0; r < rounds; r++) {
        for (int i = 0; disk && i < PER_ROUND; i++) {
            block[0]++;
            int64_t start = now();
            if (pwrite(fd, block, 512, at) != 512 || fdatasync(fd) != 0)
                return 1;
            printf("disk.fdatasync %lld\n", (long long)(now() - start));
            at = (at + 512) % FILE_SIZE;
        }
        if (with_classical)
            sign(session, classical, "capi.sign.ed25519.durable", PER_ROUND);
        if (with_hybrid)
            sign(session, hybrid, "capi.sign.hybrid.durable", PER_ROUND);
        if (with_verify) {
            if (!with_hybrid)
                sign(session, hybrid, NULL, 1);
            verify(session, "capi.verify.hybrid");
        }
    }
    check(ronkms_close(kms, &err), "close", &err);
    return 0;
}
