/* SPDX-License-Identifier: Apache-2.0 */
/* Where the tensor instructions keep their state: tables by rank and thread that live on from block
 * to block, so that a launch that fails in the middle leaves nothing behind. */
#include "tensor_state.h"

#include <stdlib.h>
#include <string.h>

uint32_t model_clock;

static struct block_state *blocks[MODEL_MAX_CLUSTER];
static struct warp_state *warps[MODEL_MAX_CLUSTER][MODEL_MAX_THREADS / 32];
static struct thread_state *threads[MODEL_MAX_CLUSTER][MODEL_MAX_THREADS];

static void *zeroed(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (p == NULL)
        abort(); /* some hundred kilobytes once a process */
    return p;
}

struct block_state *model_block_state(struct model_block *block)
{
    return (struct block_state *)block->tensor;
}

struct warp_state *model_warp_state(struct model_warp *warp)
{
    return (struct warp_state *)warp->tensor;
}

struct thread_state *model_thread_state(struct model_fiber *fiber)
{
    return (struct thread_state *)fiber->tensor;
}

void model_tensor_begin(struct model_block *block)
{
    uint32_t rank = block->rank;
    if (blocks[rank] == NULL)
        blocks[rank] = (struct block_state *)zeroed(sizeof **blocks);
    struct tmem *tmem = blocks[rank]->tmem;
    if (tmem != NULL && tmem->group != 0) /* used by the block before */
        memset(tmem, 0, sizeof *tmem);
    if (blocks[rank]->wgmma_used)
        memset(blocks[rank]->log, 0, sizeof blocks[rank]->log);
    blocks[rank]->wgmma_used = false;
    block->tensor = blocks[rank];
    for (int w = 0; w < block->warps; w++) {
        struct warp_state **state = &warps[rank][w];
        if (*state == NULL)
            *state = (struct warp_state *)zeroed(sizeof **state);
        model_wgmma_reset(*state);
        model_tcgen05_reset(*state);
        struct warp_state::store_mark *stores = (*state)->stores;
        int room = (*state)->room_stores;
        memset(*state, 0, sizeof **state);
        (*state)->stores = stores;
        (*state)->room_stores = room;
        block->warp[w].tensor = *state;
    }
    for (int t = 0; t < block->threads; t++) {
        struct thread_state **state = &threads[rank][t];
        if (*state == NULL)
            *state = (struct thread_state *)zeroed(sizeof **state);
        memset(*state, 0, sizeof **state);
        block->fiber[t].tensor = *state;
    }
}

void model_tensor_end(struct model_block *block)
{
    model_wgmma_end(block);
    model_tcgen05_end(block);
    model_bulk_end(block);
}

void model_needs_sm(int low, int high, const char *what, struct model_at at)
{
    if (model_device.sm < low || model_device.sm > high)
        model_fail(at, "%s: the modelled GPU is sm_%d, want sm_%d to sm_%d", what, model_device.sm,
                   low, high);
}

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define MSAN_POISON(p, n) __msan_poison(p, n)
#define MSAN_UNPOISON(p, n) __msan_unpoison(p, n)
#endif
#endif
#ifndef MSAN_POISON
#define MSAN_POISON(p, n) ((void)0)
#define MSAN_UNPOISON(p, n) ((void)0)
#endif

void model_poison(void *registers, int words)
{
    const uint32_t poison = MODEL_POISON_WORD;
    for (int i = 0; i < words; i++)
        memcpy((char *)registers + 4 * i, &poison, 4);
    MSAN_POISON(registers, 4 * (size_t)words);
}

int model_poisoned(const void *registers, int words)
{
    MSAN_UNPOISON(registers, 4 * (size_t)words);
    for (int i = 0; i < words; i++) {
        uint32_t word;
        memcpy(&word, (const char *)registers + 4 * i, 4);
        if (word != MODEL_POISON_WORD)
            return i;
    }
    return words;
}

void model_deliver(void *registers, const void *values, int words)
{
    memcpy(registers, values, 4 * (size_t)words);
    MSAN_UNPOISON(registers, 4 * (size_t)words);
}
