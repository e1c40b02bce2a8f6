/* SPDX-License-Identifier: Apache-2.0 */
/* One BLAS thread a call inside our own parallel regions, whatever OpenBLAS is loaded.
 *
 * The three flavours count threads differently:
 *   pthread  one count for the process; a call from any thread may wake the pool.
 *   openmp   the same count, and besides OpenMP's own count for the calling thread: a call asks for
 *            that many unless it runs inside an active region (a team of one is not active), and
 *            openblas_set_num_threads changes OpenMP's count too.
 *   serial   nothing to count, but no two threads may be inside at once: products take turns.
 * So the process-wide count is 1 while anyone is inside (a reference count under a mutex: the first
 * one in saves, the last one out restores), and the caller's OpenMP count is 1 too, which the team
 * it opens inherits. Our regions name their size themselves. */
#include "reference/blas.h"
#include "reference/reference.h"

#include <omp.h>
#include <pthread.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int inside, saved;
static bool serial; /* written by the first one in, before any product */

void mla_blas_enter(struct mla_blas_guard *guard, int team)
{
    (void)team;
    guard->openmp_threads = omp_get_max_threads();
    pthread_mutex_lock(&lock);
    if (inside++ == 0) {
        saved = openblas_get_num_threads();
        serial = openblas_get_parallel() == OPENBLAS_SEQUENTIAL;
        if (saved != 1)
            openblas_set_num_threads(1);
    }
    pthread_mutex_unlock(&lock);
    omp_set_num_threads(1);
}

void mla_blas_leave(struct mla_blas_guard *guard)
{
    pthread_mutex_lock(&lock);
    if (--inside == 0 && saved != 1)
        openblas_set_num_threads(saved);
    pthread_mutex_unlock(&lock);
    omp_set_num_threads(guard->openmp_threads);
}

void mla_blas_lock(void)
{
    if (serial)
        pthread_mutex_lock(&turn);
}

void mla_blas_unlock(void)
{
    if (serial)
        pthread_mutex_unlock(&turn);
}

static char description[160];

static void describe(void)
{
    static const char *const flavour[] = {"serial", "pthread", "openmp"};
    int parallel = openblas_get_parallel();
    char config[128];
    snprintf(config, sizeof config, "%s", openblas_get_config());
    int words = 0; /* "OpenBLAS 0.3.21 …": name and version are enough */
    for (char *c = config; *c && words < 2; c++)
        if (*c == ' ' && ++words == 2)
            *c = '\0';
    snprintf(description, sizeof description, "%s, core %s, %s", config, openblas_get_corename(),
             parallel >= 0 && parallel <= 2 ? flavour[parallel] : "unknown threading");
}

const char *mla_blas_describe(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, describe);
    return description;
}
