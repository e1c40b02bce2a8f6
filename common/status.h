/* SPDX-License-Identifier: Apache-2.0 */
/* Status and the thread-local sentence behind mla_last_error. */
#ifndef MLA_COMMON_STATUS_H
#define MLA_COMMON_STATUS_H

#include "mla/mla.h"

/* Formats the sentence and returns status, so that callers write
 *   return mla_fail(MLA_ERR_ARGUMENT, "mla_run: out: got NULL, want a pointer"); */
mla_status mla_fail(mla_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
#ifdef __clang_analyzer__ /* which cannot see that mla_fail returns its first argument */
#define mla_fail(status, ...) ((void)mla_fail(status, __VA_ARGS__), (status))
#endif

/* Exit status of the program for a library status (interchange contract): 0, 2, 3 or 4. */
int mla_exit_status(mla_status status);

/* malloc family that tests can make fail: every allocation of the library goes through here.
 * mla_alloc zeroes; count·bytes is checked for overflow. NULL means failure (no sentence left). */
void *mla_alloc(size_t count, size_t bytes);
void *mla_realloc(void *old, size_t count, size_t bytes);
void mla_free(void *memory);

/* Test hook: the n-th allocation from now fails (1 = the next one), 0 switches it off. Returns how
 * many allocations have been made since the last call. Not thread-safe; tests only. */
int64_t mla_alloc_fail_at(int64_t n);
/* Test hook: blocks of this family that nobody has freed yet. */
int64_t mla_alloc_live(void);

#endif
