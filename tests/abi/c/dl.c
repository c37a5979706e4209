/* argv: path of the library. It loads at run time, answers, unloads, and
 * answers when loaded again. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <sys/resource.h>

#include "check.h"

int main(int argc, char **argv) {
    int i;
    struct rlimit core = {4096, 4096};
    CHECK(argc == 2);
    (void)setrlimit(RLIMIT_CORE, &core); /* where it may not be raised, it is 0 already */
    for (i = 0; i < 3; i++) {
        ronkms_kms kms = {0};
        ronkms_status (*open)(const char *, size_t, const ronkms_open_options *, ronkms_kms *, ronkms_error *);
        ronkms_status (*close)(ronkms_kms, ronkms_error *);
        void *lib = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (lib == NULL) fprintf(stderr, "%s\n", dlerror());
        CHECK(lib != NULL);
        *(void **)&open = dlsym(lib, "ronkms_open");
        *(void **)&close = dlsym(lib, "ronkms_close");
        CHECK(open != NULL && close != NULL && dlsym(lib, "rkgo_open") == NULL);
        CHECK(open(TEXT("{\"backend\":\"inmem\"}"), NULL, &kms, NULL) == RONKMS_OK);
        CHECK(close(kms, NULL) == RONKMS_OK);
        CHECK(dlclose(lib) == 0);
    }
    CHECK(getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_cur == 0);
    return 0;
}
