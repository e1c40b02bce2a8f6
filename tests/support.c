/* SPDX-License-Identifier: Apache-2.0 */
#include "support.h"

#include "status.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Every test program ends with all of the library's memory freed. LeakSanitizer would say more, but
 * it stops threads to look, and crashes now and then while those of OpenMP and OpenBLAS live. */
__attribute__((destructor)) static void nothing_leaks(void)
{
    if (mla_alloc_live() == 0)
        return;
    fprintf(stderr, "%" PRId64 " blocks of the library's memory were never freed\n",
            mla_alloc_live());
    _exit(1);
}

void mla_assert_status(mla_status got, mla_status want, const char *call, const char *file,
                       int line)
{
    if (got == want)
        return;
    print_error("%s\n  got %s (%s), want %s\n", call, mla_status_name(got), mla_last_error(),
                mla_status_name(want));
    _fail(file, line);
}

void mla_assert_refused(mla_status got, mla_status want, const char *text, const char *call,
                        const char *file, int line)
{
    mla_assert_status(got, want, call, file, line);
    if (strstr(mla_last_error(), text))
        return;
    print_error("%s\n  sentence '%s'\n  lacks    '%s'\n", call, mla_last_error(), text);
    _fail(file, line);
}

/* splitmix64 */
static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double mla_test_uniform(uint64_t *state)
{
    return (double)(next(state) >> 11) * 0x1p-53;
}

int64_t mla_test_below(uint64_t *state, int64_t n)
{
    return n > 0 ? (int64_t)(mla_test_uniform(state) * (double)n) : 0;
}
