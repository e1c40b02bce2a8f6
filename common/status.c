/* SPDX-License-Identifier: Apache-2.0 */
/* Status names, the thread-local sentence, and the one allocator. */
#include "status.h"

#include "trace.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_error[2048];

const char *mla_status_name(mla_status status)
{
    static const char *const names[] = {
        "MLA_OK",         "MLA_ERR_ARGUMENT", "MLA_ERR_UNSUPPORTED", "MLA_ERR_NO_DEVICE",
        "MLA_ERR_DEVICE", "MLA_ERR_MEMORY",   "MLA_ERR_CUDA",        "MLA_ERR_IO",
    };
    if ((unsigned)status >= sizeof names / sizeof *names)
        return "MLA_STATUS_UNKNOWN";
    return names[status];
}

const char *mla_last_error(void)
{
    return last_error;
}

const char *mla_version(void)
{
#define TEXT(x) #x
#define VERSION(a, b, c) TEXT(a) "." TEXT(b) "." TEXT(c)
    return VERSION(MLA_VERSION_MAJOR, MLA_VERSION_MINOR, MLA_VERSION_PATCH);
#undef VERSION
#undef TEXT
}

mla_status(mla_fail)(mla_status status, const char *format, ...)
{
    /* Formatted aside first: an argument may point into the old sentence. */
    char text[sizeof last_error];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    memcpy(last_error, text, sizeof text);
    return status;
}

int mla_exit_status(mla_status status)
{
    switch (status) {
    case MLA_OK:
        return 0;
    case MLA_ERR_ARGUMENT:
        return 2;
    case MLA_ERR_UNSUPPORTED:
    case MLA_ERR_NO_DEVICE:
        return 3;
    default:
        return 4;
    }
}

_Thread_local const struct mla_trace *mla_trace;

/* Failure injection for tests; see status.h. Relaxed is enough: tests that use it have one thread,
 * and others only ever read zero. */
static int64_t fail_countdown;
static int64_t allocations;

static bool injected_failure(void)
{
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    if (__atomic_load_n(&fail_countdown, __ATOMIC_RELAXED) == 0)
        return false;
    return __atomic_sub_fetch(&fail_countdown, 1, __ATOMIC_RELAXED) == 0;
}

int64_t mla_alloc_fail_at(int64_t n)
{
    __atomic_store_n(&fail_countdown, n, __ATOMIC_RELAXED);
    return __atomic_exchange_n(&allocations, 0, __ATOMIC_RELAXED);
}

static int64_t live_blocks;

static void *counted(void *block)
{
    if (block)
        __atomic_add_fetch(&live_blocks, 1, __ATOMIC_RELAXED);
    return block;
}

int64_t mla_alloc_live(void)
{
    return __atomic_load_n(&live_blocks, __ATOMIC_RELAXED);
}

void *mla_alloc(size_t count, size_t bytes)
{
    if (injected_failure())
        return NULL;
    /* One byte at least, so that an empty array is not mistaken for a failure. */
    return counted(count && bytes ? calloc(count, bytes) : calloc(1, 1));
}

void *mla_realloc(void *old, size_t count, size_t bytes)
{
    size_t total;
    if (injected_failure() || __builtin_mul_overflow(count, bytes, &total))
        return NULL;
    total = total ? total : 1;
    return old ? realloc(old, total) : counted(malloc(total));
}

void mla_free(void *memory)
{
    if (memory)
        __atomic_sub_fetch(&live_blocks, 1, __ATOMIC_RELAXED);
    free(memory);
}
