/* SPDX-License-Identifier: Apache-2.0 */
/* The JSON library's allocator. */
#include "json_memory.h"
#include "status.h"

#include <jansson.h>
#include <pthread.h>

static _Thread_local bool failed;

static void *json_alloc(size_t bytes)
{
    void *memory = mla_alloc(1, bytes);
    failed |= !memory;
    return memory;
}

/* Values made before this call stay valid: mla_free is free, as jansson's own default. */
static void install(void)
{
    json_set_alloc_funcs(json_alloc, mla_free);
}

void mla_json_memory_begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    failed = false;
}

bool mla_json_memory_failed(void)
{
    return failed;
}
