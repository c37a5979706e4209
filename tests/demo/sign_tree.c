/*
 * sign_tree.c: a program that links libronkms and signs a list of digests.
 *
 *   sign_tree CONFIG.json TOKEN-FILE < digests > signatures
 *
 * Each line of input is a BLAKE3 digest in hex, two spaces and a path, as
 * `ron-kms digest` or b3sum print them. The program opens a store, creates a
 * hybrid key, signs every digest, rotates the key half-way, and writes a JSON
 * line a signature. Then it says on standard error where its HTTP control
 * plane listens, and waits to be killed.
 */
#include <ronkms.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void check(ronkms_status status, const char *what, const ronkms_error *err)
{
    if (status == RONKMS_OK)
        return;
    fprintf(stderr, "sign_tree: %s: %s: %s (%s)\n", what, ronkms_status_name(status), err->message, err->reason);
    exit(1);
}

static char *read_file(const char *name, size_t *len)
{
    FILE *f = fopen(name, "rb");
    char *buf = malloc(65536);
    if (f == NULL || buf == NULL) {
        fprintf(stderr, "sign_tree: cannot read %s\n", name);
        exit(1);
    }
    *len = fread(buf, 1, 65536, f);
    fclose(f);
    while (*len > 0 && buf[*len - 1] == '\n')
        --*len;
    return buf;
}

static int unhex(const char *text, uint8_t *out)
{
    for (int i = 0; i < RONKMS_DIGEST_SIZE; i++) {
        unsigned byte;
        if (sscanf(text + 2 * i, "%2x", &byte) != 1)
            return 0;
        out[i] = (uint8_t)byte;
    }
    return 1;
}

static void print_json_string(const char *s)
{
    putchar('"');
    for (; *s != '\0'; s++) {
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            printf("\\u%04x", (unsigned)*s);
        else
            putchar(*s);
    }
    putchar('"');
}

/* call performs a verb and copies the kid that its response begins with. */
static void call(ronkms_session session, const char *verb, const char *request, char *kid, size_t kid_cap)
{
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_buf out = RONKMS_BUF_INIT;
    check(ronkms_call(session, verb, strlen(verb), request, strlen(request), &out, &err), verb, &err);
    /* Every response of a mutation has a top-level "kid"; the key object
     * before it has one too, with the same head version. */
    const char *at = strstr((const char *)out.data, "\"kid\":\"");
    const char *end = at == NULL ? NULL : strchr(at + 7, '"');
    if (end == NULL || (size_t)(end - at - 7) >= kid_cap) {
        fprintf(stderr, "sign_tree: %s: no kid in the response\n", verb);
        exit(1);
    }
    memcpy(kid, at + 7, (size_t)(end - at - 7));
    kid[end - at - 7] = '\0';
    ronkms_buf_free(&out);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: sign_tree CONFIG.json TOKEN-FILE < digests > signatures\n");
        return 2;
    }
    size_t config_len, token_len;
    char *config = read_file(argv[1], &config_len), *token = read_file(argv[2], &token_len);

    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_kms kms;
    ronkms_session session;
    check(ronkms_open(config, config_len, NULL, &kms, &err), "open", &err);
    check(ronkms_session_open(kms, token, token_len, &session, &err), "session", &err);

    char kid[RONKMS_MAX_KID + 1], request[1024];
    call(session, "create",
         "{\"op_id\":\"6f0e6a52-6f6c-4a39-9f3e-0d5a1c3f2b10\",\"tenant\":\"demo\",\"purpose\":\"tree\","
         "\"alg\":\"ed25519+ml-dsa-65\"}", kid, sizeof kid);
    fprintf(stderr, "created %s\n", kid);

    char **lines = NULL, *line = NULL;
    size_t count = 0, line_cap = 0;
    ssize_t n;
    while ((n = getline(&line, &line_cap, stdin)) > 0) {
        if (line[n - 1] == '\n')
            line[n - 1] = '\0';
        lines = realloc(lines, (count + 1) * sizeof *lines);
        if (lines == NULL)
            return 1;
        lines[count++] = strdup(line);
    }

    for (size_t i = 0; i < count; i++) {
        if (i == count / 2) {
            char *version = strchr(kid, '#');
            if (version != NULL)
                *version = '\0'; /* rotate the key, whatever its head is */
            snprintf(request, sizeof request, "{\"op_id\":\"0b9d3c1e-5a44-4d0b-8a53-4d5f7a3b9c21\",\"kid\":\"%s\"}", kid);
            call(session, "rotate", request, kid, sizeof kid);
            fprintf(stderr, "rotated to %s after %zu signatures\n", kid, i);
        }
        uint8_t digest[RONKMS_DIGEST_SIZE], sig[RONKMS_MAX_SIGNATURE];
        size_t sig_len;
        if (strlen(lines[i]) < 67 || !unhex(lines[i], digest)) {
            fprintf(stderr, "sign_tree: line %zu is not a digest and a path\n", i + 1);
            return 1;
        }
        check(ronkms_sign(session, kid, strlen(kid), digest, sizeof digest, NULL, 0,
                          sig, sizeof sig, &sig_len, NULL, &err), "sign", &err);
        /* The answer of a cautious client: check what came back. */
        check(ronkms_verify(session, digest, sizeof digest, NULL, 0, sig, sig_len, &err), "verify", &err);
        printf("{\"path\":");
        print_json_string(lines[i] + 66);
        printf(",\"payload_b3\":\"%.64s\",\"bundle_hex\":\"", lines[i]);
        for (size_t j = 0; j < sig_len; j++)
            printf("%02x", sig[j]);
        printf("\"}\n");
    }
    fflush(stdout);

    char address[256];
    size_t address_len;
    check(ronkms_http_address(kms, address, sizeof address, &address_len, &err), "address", &err);
    fprintf(stderr, "signed %zu\nserving %s\n", count, address);
    for (;;)
        pause();
}
