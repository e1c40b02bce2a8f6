/* SPDX-License-Identifier: Apache-2.0 */
/* Streaming exact top-k, shared by the indexer and mla_topk_run.
 *
 * A score and its index become one integer, an item: the score's bits mapped so that integers order
 * as scores do (NaN lowest, -0 = +0), then the complement of the index. All items of a row differ,
 * so "the k largest items" is one set however they arrive. A state holds at most capacity items;
 * when it is full, a radix select keeps k and their smallest becomes the floor under which nothing
 * enters. Work is linear in the row: at least capacity - k items come in between two selects. */
#ifndef MLA_REFERENCE_TOPK_H
#define MLA_REFERENCE_TOPK_H

#include "mla/index.h"

#define MLA_TOPK_SLACK 512

/* Items a state needs room for; a multiple of 8. Twice k also serves the final sort as scratch. */
static inline int64_t mla_select_capacity(int64_t k)
{
    return 2 * ((k + 7) & ~(int64_t)7) + MLA_TOPK_SLACK;
}

/* A row's result goes here; scores may be NULL. Entry i of the row is index - base. */
struct mla_select_out {
    int32_t *indices;
    void *scores; /* float or double, as the state */
    int32_t *len; /* may be NULL */
    int64_t k, base;
};

typedef uint64_t mla_item_f32;
typedef unsigned __int128 mla_item_f64;

#define MLA_SELECT_DECLARE(real, suffix)                                                           \
    struct mla_select_##suffix {                                                                   \
        mla_item_##suffix *items, floor;                                                           \
        real floor_score;                                                                          \
        int64_t k, capacity, count;                                                                \
        bool full; /* floor is set: k larger items are held */                                     \
    };                                                                                             \
    void mla_select_begin_##suffix(struct mla_select_##suffix *s, int64_t k, void *items);         \
    /* scores[i] belongs to index first + i; calls come in order of index */                       \
    void mla_select_push_##suffix(struct mla_select_##suffix *s, const real *scores,               \
                                  int64_t first, int64_t n);                                       \
    /* items of another state over other indices of the row */                                     \
    void mla_select_merge_##suffix(struct mla_select_##suffix *s,                                  \
                                   const struct mla_select_##suffix *other);                       \
    void mla_select_end_##suffix(struct mla_select_##suffix *s, mla_topk_order order,              \
                                 const struct mla_select_out *out);

MLA_SELECT_DECLARE(float, f32)
MLA_SELECT_DECLARE(double, f64)

#endif
