/* argv: config passphrase token. 32 threads call while the store is closed
 * under them. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>

#include "check.h"

#define THREADS 32

static ronkms_kms kms;
static ronkms_session session;
static char kid[RONKMS_MAX_KID + 1];
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER;
static int signatures, closes; /* guarded by mu */

static void *work(void *unused) {
    uint8_t sig[RONKMS_MAX_SIGNATURE];
    size_t len;
    ronkms_error err = RONKMS_ERROR_INIT;
    (void)unused;
    for (;;) {
        ronkms_session own;
        ronkms_status st = ronkms_sign(session, kid, strlen(kid), digest, sizeof digest, NULL, 0, sig, sizeof sig, &len, NULL, &err);
        if (st == RONKMS_OK) {
            CHECK(len > 0);
            st = ronkms_verify(session, digest, sizeof digest, NULL, 0, sig, len, &err);
            CHECK(st == RONKMS_OK || st == RONKMS_ERR_HANDLE || st == RONKMS_ERR_UNAVAILABLE);
            pthread_mutex_lock(&mu);
            signatures++;
            pthread_cond_signal(&progress);
            pthread_mutex_unlock(&mu);
            continue;
        }
        /* Closed before the call, or as it began. */
        CHECK(len == 0 && all_zero(sig, sizeof sig));
        CHECK(st == RONKMS_ERR_HANDLE || (st == RONKMS_ERR_UNAVAILABLE && strcmp(err.reason, "closed") == 0));
        if (st == RONKMS_ERR_HANDLE) {
            st = ronkms_session_open(kms, "x", 1, &own, NULL);
            CHECK(st == RONKMS_ERR_HANDLE);
            return NULL;
        }
    }
}

static void *closer(void *unused) {
    ronkms_status st = ronkms_close(kms, NULL);
    (void)unused;
    CHECK(st == RONKMS_OK || st == RONKMS_ERR_HANDLE);
    pthread_mutex_lock(&mu);
    closes += st == RONKMS_OK;
    pthread_mutex_unlock(&mu);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS], closers[4];
    int i;
    CHECK(argc == 4);
    kms = open_store(argv);
    session = open_session(kms, argv[3]);
    create(session, "ed25519", "00000000-0000-4000-8000-000000000001", kid);
    for (i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
    pthread_mutex_lock(&mu);
    while (signatures < 4 * THREADS) pthread_cond_wait(&progress, &mu);
    pthread_mutex_unlock(&mu);
    for (i = 0; i < 4; i++) CHECK(pthread_create(&closers[i], NULL, closer, NULL) == 0);
    for (i = 0; i < 4; i++) CHECK(pthread_join(closers[i], NULL) == 0);
    for (i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(closes == 1);
    return 0;
}
