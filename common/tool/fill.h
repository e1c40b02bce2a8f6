/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the case generator: what fill.c (values) and fill_lists.c (top-k, masks) share. */
#ifndef MLA_TOOL_FILL_H
#define MLA_TOOL_FILL_H

#include "case.h"
#include "random.h"

enum fill_kind {
    FILL_NORMAL,
    FILL_DIFFUSE,
    FILL_LARGE,
    FILL_COUNTING,
    FILL_NEEDLE,
    FILL_PEAKY,
    FILL_EQUAL,
    FILL_HUGE,
    FILL_SINK,
    FILL_CANCEL,
    FILL_MASKED,
    FILL_KINDS
};

/* Names by enumerator, and "a, b, c" of all of them for sentences. */
extern const char *const mla_fill_names[FILL_KINDS];
#define MLA_FILL_LIST                                                                              \
    "normal, diffuse, large, counting, needle, peaky, equal, huge, sink, cancel or masked"

/* One stream of random numbers for each tensor and each decision: a change to one moves no
 * other. */
enum fill_stream {
    STREAM_Q_NOPE,
    STREAM_Q_PE,
    STREAM_W_UK,
    STREAM_W_UV,
    STREAM_LATENT,
    STREAM_ROPE,
    STREAM_K,
    STREAM_V,
    STREAM_CODE,
    STREAM_PEAK,
    STREAM_PAGES,
    STREAM_NEEDLE,
    STREAM_LIST,
    STREAM_HOLE,
    STREAM_TAIL,
    STREAM_LENS,
    STREAM_MASK,
    STREAM_HEAT,
    STREAM_SINK,
    STREAMS
};

/* A generation in progress. */
struct fill {
    const mla_problem *problem;
    enum fill_kind kind;
    bool holes, infinite_sinks, shuffled_pages;
    uint64_t key[STREAMS];
    const int64_t *kv_start;    /* [B+1] first key row of each request */
    const int32_t *row_request; /* [T] request of each query row */
};

/* Keys [0, end) that row i of request b may see by length and causality, ignoring lists. */
static inline int64_t mla_fill_visible(const struct fill *f, int64_t b, int64_t i)
{
    const mla_problem *p = f->problem;
    int64_t n = p->seq_lens_kv[b];
    int64_t end = p->causal ? n - (p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b]) + i + 1 : n;
    return end < 0 ? 0 : end > n ? n : end;
}

/* Fill needle: position of the key that row i of request b points at, -1 if it sees none; and
 * whether key j of request b is such a key for some row. */
int64_t mla_fill_needle(const struct fill *f, int64_t b, int64_t i);
bool mla_fill_is_edge(const struct fill *f, int64_t b, int64_t j);

/* topk_indices and topk_lens, or mask, into buffers of c. MLA_ERR_MEMORY. */
mla_status mla_fill_lists(const struct fill *f, struct mla_case *c);

#endif
