/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests: cmocka, and assertions about statuses and sentences. */
#ifndef MLA_TESTS_SUPPORT_H
#define MLA_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mla/mla.h"

/* status is the one wanted; prints both names and the sentence if not. */
#define assert_status(call, wanted) mla_assert_status((call), (wanted), #call, __FILE__, __LINE__)
#define assert_ok(call) assert_status(call, MLA_OK)
/* The call fails with this status and its sentence contains this text. */
#define assert_refused(call, wanted, text)                                                         \
    mla_assert_refused((call), (wanted), (text), #call, __FILE__, __LINE__)

void mla_assert_status(mla_status got, mla_status want, const char *call, const char *file,
                       int line);
void mla_assert_refused(mla_status got, mla_status want, const char *text, const char *call,
                        const char *file, int line);

/* Uniform in [0, 1) and integers in [0, n) from a counter: same numbers on every machine. */
double mla_test_uniform(uint64_t *state);
int64_t mla_test_below(uint64_t *state, int64_t n);

#endif
