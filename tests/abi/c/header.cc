// The header is C++ as well.
#include "ronkms.h"

int main() {
    ronkms_error err = RONKMS_ERROR_INIT;
    ronkms_open_options options = RONKMS_OPEN_OPTIONS_INIT;
    ronkms_receipt receipt = RONKMS_RECEIPT_INIT;
    ronkms_buf buf = RONKMS_BUF_INIT;
    ronkms_kms kms = {0};
    return RONKMS_OK + static_cast<int>(kms.id + receipt.log_index + buf.len + options.passphrase_len) + err.code;
}
