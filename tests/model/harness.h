/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of the functional model's instructions share: kernels right and wrong, run under every
 * schedule. A right kernel's output is compared; a wrong one must be reported, with the words that
 * the test expects. */
#ifndef MLA_TESTS_MODEL_HARNESS_H
#define MLA_TESTS_MODEL_HARNESS_H

#include "tensor_map.h"

#include <stddef.h>
#include <stdint.h>

struct test_args {
    struct mla_tensor_map map;
    uint32_t *out, *in;
    int wrong; /* which mistake the kernel makes; 0 = none */
    int p[8];
};

struct test_launch {
    const void *kernel;
    unsigned blocks, cluster, threads;
    int sm;
};

enum { OUT_WORDS = 1 << 17 };
extern uint32_t *test_out, *test_in; /* OUT_WORDS each */

/* Runs under eager, late and three random schedules; every output must pass check, and be the
 * same. */
void test_right(const char *name, const struct test_launch *launch, struct test_args *args,
                bool (*check)(const struct test_args *args));

/* The same under the eager schedule alone. */
void test_once(const char *name, const struct test_launch *launch, struct test_args *args,
               bool (*check)(const struct test_args *args));

/* The mistake must be reported with words that hold text: under every schedule, or at least under
 * the late one, for mistakes that need an operation still under way. */
enum test_when { ALWAYS, LATE };
void test_wrong(const char *name, const struct test_launch *launch, struct test_args *args,
                enum test_when when, const char *text);
/* A mistake that shows in the output alone: check must fail under every schedule. */
void test_spoilt(const char *name, const struct test_launch *launch, struct test_args *args,
                 bool (*check)(const struct test_args *args));

void test_expect(bool good, const char *name);

#endif
