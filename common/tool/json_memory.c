/* SPDX-License-Identifier: Apache-2.0 */
/* The JSON library's allocator. */
#include "json_memory.h"
#include "status.h"

#include <pthread.h>
#include <setjmp.h>
#include <stddef.h>

/* In front of every block of a parse; other blocks are plain mla_alloc. Which kind a block is
 * follows from when it is freed: jansson frees blocks of a parse only while that parse runs. */
struct mla_json_block {
    struct mla_json_block *next, *prev;
    _Alignas(max_align_t) char bytes[];
};

static _Thread_local struct mla_json_memory *parsing; /* NULL outside mla_json_parse */
static _Thread_local jmp_buf give_up;
static _Thread_local bool failed;

static void *json_alloc(size_t bytes)
{
    if (!parsing) {
        void *memory = mla_alloc(1, bytes);
        failed |= !memory;
        return memory;
    }
    size_t total;
    struct mla_json_block *block = NULL;
    if (!__builtin_add_overflow(bytes, sizeof *block, &total))
        block = mla_alloc(1, total);
    if (!block)
        longjmp(give_up, 1);
    block->next = parsing->first;
    if (block->next)
        block->next->prev = block;
    parsing->first = block;
    return block->bytes;
}

static void json_free(void *memory)
{
    if (!parsing || !memory) {
        mla_free(memory);
        return;
    }
    struct mla_json_block *block =
        (struct mla_json_block *)((char *)memory - offsetof(struct mla_json_block, bytes));
    if (block->prev)
        block->prev->next = block->next;
    else
        parsing->first = block->next;
    if (block->next)
        block->next->prev = block->prev;
    mla_free(block);
}

/* Values made before this stay valid: mla_free is free, as jansson's own default. */
static void install(void)
{
    json_set_alloc_funcs(json_alloc, json_free);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

json_t *mla_json_parse(const char *text, size_t bytes, size_t flags, struct mla_json_memory *memory,
                       json_error_t *error, bool *no_memory)
{
    pthread_once(&once, install);
    *no_memory = false;
    if (setjmp(give_up)) {
        parsing = NULL;
        mla_json_free(memory);
        *no_memory = true;
        return NULL;
    }
    parsing = memory;
    json_t *root = json_loadb(text, bytes, flags, error);
    parsing = NULL;
    return root;
}

void mla_json_free(struct mla_json_memory *memory)
{
    for (struct mla_json_block *block = memory->first, *next; block; block = next) {
        next = block->next;
        mla_free(block);
    }
    memory->first = NULL;
}

void mla_json_memory_begin(void)
{
    pthread_once(&once, install);
    failed = false;
}

bool mla_json_memory_failed(void)
{
    return failed;
}
