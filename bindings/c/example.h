/* What the examples share: reading their arguments. */
#ifndef RONKMS_EXAMPLE_H
#define RONKMS_EXAMPLE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ronkms.h"

/* die prints why a call failed and ends the program. */
static inline void die(const char *what, const ronkms_error *err) {
    fprintf(stderr, "%s: %s (%s, %s)\n", what, err->message, ronkms_status_name(err->code), err->reason);
    exit(1);
}

/* read_file returns a file's text without the newline at its end. */
static inline char *read_file(const char *path) {
    static char storage[4][RONKMS_MAX_CONFIG + 1];
    static int used;
    char *text = storage[used++ % 4];
    FILE *f = fopen(path, "rb");
    size_t n = f == NULL ? 0 : fread(text, 1, RONKMS_MAX_CONFIG, f);
    if (f == NULL || ferror(f)) {
        perror(path);
        exit(1);
    }
    fclose(f);
    while (n > 0 && text[n - 1] == '\n') n--;
    text[n] = '\0';
    return text;
}

/* read_digest reads 64 hexadecimal digits, as b3sum prints them. */
static inline void read_digest(const char *hex, uint8_t digest[RONKMS_DIGEST_SIZE]) {
    int i;
    for (i = 0; i < RONKMS_DIGEST_SIZE; i++) {
        unsigned byte;
        if (strlen(hex) != 64 || sscanf(hex + 2 * i, "%2x", &byte) != 1) {
            fprintf(stderr, "the digest must be 64 hexadecimal digits\n");
            exit(1);
        }
        digest[i] = (uint8_t)byte;
    }
}

/* read_op_id makes the UUID that names a change. A program that retries keeps
 * it, so that the change is made once. */
static inline char *read_op_id(void) { return read_file("/proc/sys/kernel/random/uuid"); }

#endif
