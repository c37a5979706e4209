/* Prints the layout of every struct and the value of every constant as JSON. */
#include <stdio.h>

#include "ronkms.h"

#define STRUCT(t) printf("%s\n  \"%s\": %zu", sep, #t, sizeof(t)), sep = ","
#define FIELD(t, f) printf(",\n  \"%s.%s\": [%zu, %zu]", #t, #f, offsetof(t, f), sizeof(((t *)0)->f))
#define CONST(c) printf(",\n  \"%s\": %lld", #c, (long long)(c))

int main(void) {
    const char *sep = "{";
    STRUCT(ronkms_kms);
    FIELD(ronkms_kms, id);
    STRUCT(ronkms_session);
    FIELD(ronkms_session, id);
    STRUCT(ronkms_error);
    FIELD(ronkms_error, struct_size);
    FIELD(ronkms_error, code);
    FIELD(ronkms_error, flags);
    FIELD(ronkms_error, retry_after_ms);
    FIELD(ronkms_error, audit_index);
    FIELD(ronkms_error, reason);
    FIELD(ronkms_error, request_id);
    FIELD(ronkms_error, message);
    STRUCT(ronkms_open_options);
    FIELD(ronkms_open_options, struct_size);
    FIELD(ronkms_open_options, log_fd);
    FIELD(ronkms_open_options, passphrase);
    FIELD(ronkms_open_options, passphrase_len);
    STRUCT(ronkms_receipt);
    FIELD(ronkms_receipt, struct_size);
    FIELD(ronkms_receipt, reserved);
    FIELD(ronkms_receipt, log_index);
    FIELD(ronkms_receipt, key_seq);
    FIELD(ronkms_receipt, checkpoint_size);
    FIELD(ronkms_receipt, log);
    STRUCT(ronkms_buf);
    FIELD(ronkms_buf, struct_size);
    FIELD(ronkms_buf, reserved);
    FIELD(ronkms_buf, data);
    FIELD(ronkms_buf, len);
    CONST(RONKMS_ABI_VERSION);
    CONST(RONKMS_DIGEST_SIZE);
    CONST(RONKMS_MAX_SIGNATURE);
    CONST(RONKMS_ERROR_RETRYABLE);
    printf("\n}\n");
    return 0;
}
