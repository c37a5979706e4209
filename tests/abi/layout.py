"""Prints the layout of the Python module's structs, as c/layout.c does."""

import ctypes
import json

import ronkms

layout = {
    "RONKMS_ABI_VERSION": ronkms.ABI_MAJOR << 16 | ronkms.ABI_MINOR,
    "RONKMS_DIGEST_SIZE": ronkms.DIGEST_SIZE,
    "RONKMS_MAX_SIGNATURE": ronkms.MAX_SIGNATURE,
    "RONKMS_ERROR_RETRYABLE": ronkms.ERROR_RETRYABLE,
}
for struct in ronkms.STRUCTS:
    layout[struct.__name__] = ctypes.sizeof(struct)
    for name, _ in struct._fields_:
        field = getattr(struct, name)
        layout[f"{struct.__name__}.{name}"] = [field.offset, field.size]
print(json.dumps(layout))
