/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of the CPU attention. */
#ifndef MLA_REFERENCE_ATTEND_H
#define MLA_REFERENCE_ATTEND_H

#include "reference/reference.h"

/* Row operations of a two-pass softmax over scores s [n]; words, where given, hold one bit per key
 * and hide those that are 0. Rows with NaN give NaN sums; max ignores NaN. One set for each
 * instruction set (softmax.c). exp is within 1.5 ulp of exact in both types; weights
 * below 2^-126 (2^-1022) are flushed to 0. */
struct mla_softmax_f32 {
    float (*max)(const float *s, int64_t n, const uint32_t *words); /* -inf if none */
    /* s[j] = exp(s[j] - max), hidden ones 0; returns their sum. */
    float (*exp)(float *s, int64_t n, const uint32_t *words, float max);
};
struct mla_softmax_f64 {
    double (*max)(const double *s, int64_t n, const uint32_t *words);
    double (*exp)(double *s, int64_t n, const uint32_t *words, double max);
};
const struct mla_softmax_f32 *mla_softmax_f32(void); /* the best this CPU runs */
const struct mla_softmax_f64 *mla_softmax_f64(void);
/* Set number i ("generic", "avx2", …), or false past the end; false in *runs if this CPU
 * can't. */
bool mla_softmax_get(int i, const char **name, bool *runs, const struct mla_softmax_f32 **f32,
                     const struct mla_softmax_f64 **f64);

/* Sizes and workspace offsets of one job, a pure function of job and thread count (attend_blas.c).
 * Offsets are in bytes from the workspace, 0 where a part is not needed. */
struct mla_attend {
    bool sparse; /* keys gathered from lists, else chunks of all keys */
    bool mqa;    /* absorbed: one kv head, v = the first d_v values of k */
    bool bits;   /* visibility bits are built for each pass */
    int threads;
    int64_t d_k, d_v;                  /* widths inside the attention */
    int64_t d_row;                     /* width of a key straight from the tensors */
    int64_t kv_heads, ratio;           /* ratio query heads share a kv head */
    const struct mla_panel_ops *panel; /* NULL: products by BLAS */
    int64_t row_step;   /* score rows from one query to the next: ratio, or more in panels */
    int64_t rows;       /* score rows of a slot and split in the buffers */
    int64_t slots;      /* kv heads computed together */
    int64_t pass;       /* query rows computed together */
    int64_t block;      /* score rows (query, head) of one task */
    int64_t chunk;      /* keys loaded together; a multiple of 32 */
    int64_t tile;       /* panels: keys of one step, a multiple of 32 */
    int64_t splits;     /* parts of a chunk that tasks take separately, merged at the end */
    int64_t ld_score;   /* row length of the score buffer */
    int64_t words;      /* of one row of bits */
    int64_t total_rows; /* sparse: query rows of all requests */
    size_t latent, key, value, weight, query, out, state, bits_at, flags;
    size_t slab, slab_bytes; /* one a thread; within it: */
    size_t slab_score, slab_words, slab_row, slab_mat;
    size_t total;
    const int64_t *row_start; /* sparse: [num_requests + 1] */
};

mla_status mla_attend_prepare(struct mla_job *job);
mla_status mla_attend_prepare_panels(struct mla_job *job);
bool mla_attend_supports_panels(const struct mla_job *job, char *why, size_t bytes);
void mla_attend_release(struct mla_job *job);
mla_status mla_attend_run(const struct mla_job *job, const mla_tensors *tensors, void *workspace,
                          void *stream);

/* The oracle with scratch of mla_attend_naive_scratch() doubles given. */
int64_t mla_attend_naive_scratch(const mla_problem *problem);
void mla_attend_naive_in(const mla_problem *problem, const mla_tensors *tensors,
                         const struct mla_request *request, int64_t row, int64_t head, double *out,
                         double *lse, double *max_logit, double *scratch);

/* reference/merge.c */
mla_status mla_merge_cpu(const mla_context *context, const mla_merge_args *args, void *stream);

/* Columns of mask. */
static inline int64_t mla_mask_words(const mla_problem *p)
{
    int64_t longest = 0;
    for (int64_t b = 0; b < p->batch; b++)
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    return (longest + 31) / 32;
}

/* Entries of list row t that count. */
static inline int64_t mla_list_length(const mla_problem *p, const mla_tensors *tensors, int64_t t)
{
    int64_t n = p->has_topk_lens ? tensors->topk_lens[t] : p->topk;
    return n < 0 ? 0 : n > p->topk ? p->topk : n;
}

/* Elements before [row, column, 0] of a tensor [rows, columns, width]. */
static inline int64_t mla_offset(const mla_tensor *t, int64_t columns, int64_t width, int64_t row,
                                 int64_t column)
{
    int64_t inner = mla_stride1(t, width);
    return row * mla_stride0(t, columns * inner) + column * inner;
}

/* Address of [row, column, 0]. */
static inline void *mla_element(const mla_tensor *t, mla_dtype dtype, int64_t columns,
                                int64_t width, int64_t row, int64_t column)
{
    return (char *)t->data +
           mla_offset(t, columns, width, row, column) * (int64_t)mla_dtype_bytes(dtype);
}

/* lse and max_logits [rows, heads]: double beside a double out, else float. */
static inline void mla_store_lse(const mla_tensor *t, mla_dtype out_dtype, int64_t heads,
                                 int64_t row, int64_t head, double x)
{
    int64_t at = mla_offset(t, heads, 1, row, head);
    if (out_dtype == MLA_F64)
        ((double *)t->data)[at] = x;
    else
        ((float *)t->data)[at] = (float)x;
}

#endif
