/* Does on a book what standard input says, a command a line with fields separated
 * by tabs, and answers each with a word. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ronkms_receipts.h"

static struct {
    char name[64];
    ronkms_receipts_mark mark;
} marks[64];
static size_t num_marks;

static ronkms_receipts_mark *mark_named(const char *name) {
    for (size_t i = 0; i < num_marks; i++) {
        if (strcmp(marks[i].name, name) == 0) return &marks[i].mark;
    }
    if (num_marks == sizeof marks / sizeof *marks) num_marks = 0;
    snprintf(marks[num_marks].name, sizeof marks[num_marks].name, "%s", name);
    return &marks[num_marks++].mark;
}

static uint64_t number(const char *s) { return strtoumax(s, NULL, 10); }

int main(void) {
    static char line[8192];
    ronkms_receipts *book = NULL;
    while (fgets(line, sizeof line, stdin) != NULL) {
        char *f[7] = {"", "", "", "", "", "", ""}, *rest = line;
        line[strcspn(line, "\n")] = '\0';
        for (size_t n = 0; n < 7 && rest != NULL; n++) {
            f[n] = rest;
            rest = strchr(rest, '\t');
            if (rest != NULL) *rest++ = '\0';
        }
        ronkms_receipts_result result = RONKMS_RECEIPTS_OK;
        if (strcmp(f[0], "create") == 0 || strcmp(f[0], "open") == 0) {
            ronkms_receipts *opened = NULL;
            result = (*f[0] == 'c' ? ronkms_receipts_create : ronkms_receipts_open)(f[1], number(f[2]), &opened);
            if (result == RONKMS_RECEIPTS_OK) {
                ronkms_receipts_close(book);
                book = opened;
            }
        } else if (strcmp(f[0], "mark") == 0) {
            *mark_named(f[1]) = ronkms_receipts_take_mark(book);
        } else if (strcmp(f[0], "check") == 0) {
            ronkms_receipts_receipt r = {f[3], number(f[4]), number(f[5]), number(f[6])};
            result = ronkms_receipts_check(book, mark_named(f[1]), f[2], &r);
        } else if (strcmp(f[0], "accept") == 0) {
            result = ronkms_receipts_accept(book, f[1]);
        } else if (strcmp(f[0], "forget") == 0) {
            result = ronkms_receipts_forget(book, f[1]);
        } else if (strcmp(f[0], "save") == 0) {
            result = ronkms_receipts_save(book);
        } else if (strcmp(f[0], "close") == 0) {
            result = ronkms_receipts_close(book);
            book = NULL;
        } else {
            return 2;
        }
        puts(ronkms_receipts_text(result));
        fflush(stdout);
    }
    return ronkms_receipts_close(book) == RONKMS_RECEIPTS_OK ? 0 : 1;
}
