/* SPDX-License-Identifier: Apache-2.0 */
/* The lightning indexer of DeepSeek Sparse Attention, and exact top-k.
 *
 * For query row t and key s of the same request
 *     I[t,s] = k_scale[s] · sum_h W[t,h] · ReLU(sum_d q[t,h,d] · k[s,d])
 * and the indexer lists, per row, the topk keys of largest I. mla_index_run computes I in blocks
 * and selects as it goes: it never holds a [queries × keys] matrix. The list is exact and does not
 * depend on blocking, workspace limit or thread count. docs/index.md has order of summation and tie
 * rules.
 *
 * Words: T query rows of all requests, Hi index heads, D index head dim, S keys, B requests, K
 * topk. "Backend memory" is device memory for CUDA and host memory for the CPU. */
#ifndef MLA_INDEX_H
#define MLA_INDEX_H

#include "mla/mla.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------- enumerations */

/* How rows of q_I and k_I are stored. */
typedef enum mla_index_format {
    MLA_INDEX_F32 = 0, /* D floats */
    MLA_INDEX_BF16,    /* D bf16 */
    MLA_INDEX_FP8,     /* D e4m3 bytes, one float scale a row */
    MLA_INDEX_FP4      /* D/2 bytes of e2m1 (low nibble first), 4 ue8m0 bytes: one per 32 elements;
                          D a multiple of 32, at most 128 */
} mla_index_format;

/* Order of the entries of a row of a list. */
typedef enum mla_topk_order {
    MLA_TOPK_BY_SCORE = 0, /* largest score first, lower index first among equal scores */
    MLA_TOPK_ASCENDING     /* by index */
} mla_topk_order;

/* How rotary embedding pairs the first rope_dim elements. */
typedef enum mla_rope_style {
    MLA_ROPE_NONE = 0,
    MLA_ROPE_INTERLEAVED, /* (2i, 2i+1): GLM-5, and main MLA heads everywhere */
    MLA_ROPE_HALF         /* (i, i + rope_dim/2): DeepSeek-V3.2's indexer */
} mla_rope_style;

/* "f32", "bf16", "fp8", "fp4", or "unknown"; never NULL. */
MLA_API const char *mla_index_format_name(mla_index_format value);

/* Bytes a token takes in the paged index cache: D + 4 (132) for fp8, D/2 + 4 (68) for fp4, 0 for
 * formats that are not cached. A page holds the data of its page_size tokens, then their scales. */
MLA_API size_t mla_index_row_bytes(mla_index_format format, int64_t dim);

/* ------------------------------------------------------- scores and top-k */

/* One indexer call. Zero it ({0}), then set what is needed.
 *
 * Which keys a row sees: its request's keys [0, seq_len_kv), cut to
 * seq_len_kv - query_len + i + 1 for its i-th row where causal, cut to [key_start[t], key_end[t])
 * where given; any int32 value is fine there. Keys on a page outside [0, num_pages) are not seen.
 * Positions count from the request's first key. Without cu_seqlens_q there is one request of
 * num_queries rows and num_keys keys: with key_start and key_end this is several requests one after
 * another, and relative then gives positions within each. */
typedef struct mla_index_args {
    /* Shape; host. */
    int64_t num_queries; /* T >= 0 */
    int64_t heads;       /* Hi >= 1 */
    int64_t dim;         /* D >= 1 */
    int64_t num_keys;    /* S: rows of flat k; paged without seq_lens_kv: keys of the one request */
    int64_t batch;       /* B; used with cu_seqlens_q */
    const int32_t *cu_seqlens_q; /* host [B+1]: 0 … T; NULL = one request */
    const int32_t *seq_lens_kv;  /* host [B]; flat k holds the requests' keys back to back */
    bool causal;
    mla_index_format q_format;
    mla_index_format k_format;
    int64_t page_size; /* 0 = flat k; > 0 = paged, fp8 and fp4 only */
    int64_t num_pages; /* pages of k_cache */
    int64_t max_pages; /* columns of page_table */

    int64_t topk; /* K; 0 = no list wanted */
    mla_topk_order order;
    bool relative;                /* positions, and columns of logits, count from key_start[t] */
    int64_t logits_columns;       /* C >= keys of the longest request; 0 = no logits wanted */
    mla_precision precision;      /* FP32 as deployed, or FP64: the oracle; CPU */
    size_t workspace_limit_bytes; /* 0 = the backend's default; less memory, same result */
    const char *kernel;           /* NULL = choose; index_logits_any, _sm90 or _sm100 on CUDA: a
                                     name never falls back. An MLA_KERNEL in the environment that
                                     begins with index_logits does the same */

    /* Inputs; backend memory. */
    mla_tensor q;        /* [T, Hi, D] of q_format (fp4 [T, Hi, D/2] bytes) */
    mla_tensor q_scale;  /* fp4: ue8m0 bytes [T, Hi, 4]; other formats: absent, scales are in W */
    mla_tensor weights;  /* W: float [T, Hi] */
    mla_tensor k;        /* flat [S, D] of k_format (fp4 [S, D/2] bytes) */
    const void *k_scale; /* flat: float [S] (fp8; optional for f32 and bf16), bytes [S, 4] (fp4) */
    mla_tensor k_cache;  /* paged; stride[0] = bytes of a page, stride[1] unused */
    mla_tensor page_table;              /* int32 [B, max_pages] */
    const int32_t *key_start, *key_end; /* [T] or NULL, half-open */

    /* Outputs; backend memory. Scores are float, double for FP64. */
    mla_tensor logits;  /* [T, C]: I, and -inf where the row does not see the key */
    mla_tensor indices; /* int32 [T, K]: positions, then -1 */
    int32_t *topk_lens; /* [T]: entries before the -1s; NULL = not wanted */
    mla_tensor scores;  /* [T, K]: I of each entry, then -inf; absent = not wanted */
} mla_index_args;

/* Bytes of workspace for mla_index_run with these args, at most workspace_limit_bytes where that is
 * set; alignment 256 is enough. Reads the host fields only. MLA_ERR_ARGUMENT (names field, value
 * and what is wanted; a limit that is too small is told the smallest), MLA_ERR_UNSUPPORTED
 * (backend). *bytes is 0 on failure. Any thread. */
MLA_API mla_status mla_index_workspace_bytes(const mla_context *context, const mla_index_args *args,
                                             size_t *bytes);

/* Computes scores, lists or both. Checks, then enqueues; allocates nothing, waits for nothing. CPU:
 * stream must be NULL and the call returns when done. Order among scores: larger first, -0 = +0,
 * NaN below -inf, lower index first among equals; every key that the row sees counts, whatever its
 * score. Nothing is written unless the status is MLA_OK. MLA_ERR_ARGUMENT, MLA_ERR_UNSUPPORTED
 * (CUDA: formats other than bf16 and fp8, dim above 128, FP64, a named kernel that does not take
 * the call), MLA_ERR_CUDA. Any number of threads may share context and inputs, each with its own
 * workspace and outputs. */
MLA_API mla_status mla_index_run(const mla_context *context, const mla_index_args *args,
                                 void *workspace, size_t workspace_bytes, void *stream);

/* Top-k alone, over scores that exist. */
typedef struct mla_topk_args {
    int64_t rows;    /* R >= 0 */
    int64_t columns; /* N: 0 … 2^31-1 scores a row */
    int64_t topk;    /* K >= 1 */
    mla_topk_order order;
    bool relative;                      /* indices count from key_start[r] */
    size_t workspace_limit_bytes;       /* 0 = the backend's default */
    mla_tensor in;                      /* float [R, N]; backend memory, as everything below */
    const int32_t *key_start, *key_end; /* [R] or NULL: only columns of [start, end) count */
    mla_tensor indices;                 /* int32 [R, K]: columns, then -1 */
    int32_t *topk_lens;                 /* [R] or NULL */
    mla_tensor scores;                  /* float [R, K], then -inf; absent = not wanted */
} mla_topk_args;

/* As mla_index_workspace_bytes and mla_index_run: same statuses, same order, same thread rules.
 * Scores come back with -0 as +0 and every NaN as the default NaN. */
MLA_API mla_status mla_topk_workspace_bytes(const mla_context *context, const mla_topk_args *args,
                                            size_t *bytes);
MLA_API mla_status mla_topk_run(const mla_context *context, const mla_topk_args *args,
                                void *workspace, size_t workspace_bytes, void *stream);

/* --------------------------------------- from projections to index records */

/* What happens to projected q_I or k_I rows before scoring: LayerNorm, then rotary embedding of the
 * first rope_dim elements, then Hadamard, then quantisation; each step can be left out. A step is
 * computed in float or better and its result rounded to dtype, as deployed. Host memory. */
typedef struct mla_index_prepare_args {
    int64_t rows;    /* tokens */
    int64_t heads;   /* rows per token: Hi for q_I, 1 for k_I */
    int64_t dim;     /* D */
    mla_dtype dtype; /* of in: F32, BF16, F16 */
    const void *in;  /* [rows, heads, dim], packed */

    const float *norm_weight; /* [dim]; NULL = no LayerNorm (with norm_bias NULL too) */
    const float *norm_bias;   /* [dim] */
    double norm_eps;          /* 1e-6 in DeepSeek-V3.2 */

    mla_rope_style rope_style;
    int64_t rope_dim;         /* even, <= dim; 64 */
    const float *inv_freq;    /* [rope_dim/2]: angle i = position · inv_freq[i] */
    const int32_t *positions; /* [rows] */

    bool hadamard;  /* multiply by the Walsh-Hadamard matrix / sqrt(dim); dim a power of two */
    bool any_scale; /* fp8: scale = amax/448 as it is; false rounds it up to a power of two */

    mla_index_format format; /* of out */
    void *out;               /* [rows, heads, dim] of format (fp4 dim/2 bytes), packed */
    void *scale;             /* fp8: float [rows, heads]; fp4: bytes [rows, heads, 4]; else NULL */
} mla_index_prepare_args;

/* fp8: amax = max(|x|, 1e-4), scale = 2^ceil(log2(amax/448)), e4m3(x/scale) to nearest even,
 * saturating. fp4: per 32 elements, amax = max(|x|, 1e-4), scale = 2^ceil(log2(amax/6)),
 * e2m1(x/scale) to nearest with ties towards zero and no -0. A value that is not finite becomes NaN
 * in fp8, and its block of 32 NaN in fp4; amax leaves it out. MLA_ERR_ARGUMENT, MLA_ERR_MEMORY. Any
 * thread. */
MLA_API mla_status mla_index_prepare(const mla_index_prepare_args *args);

/* out[t,h] = w[t,h] · heads^-0.5 · q_scale[t,h] · dim^-0.5, float, multiplied from the left; in
 * place allowed. q_scale NULL = 1 (fp4 and unquantised q). [rows, heads] packed, host memory.
 * MLA_ERR_ARGUMENT. Any thread. */
MLA_API mla_status mla_index_fold_weights(const float *w, const float *q_scale, int64_t rows,
                                          int64_t heads, int64_t dim, float *out);

/* Writes row i of (data, scale), as mla_index_prepare leaves them with heads 1, to flat place
 * slots[i] = page · page_size + offset of a paged index cache; -1 skips the row. page_bytes 0 =
 * packed pages. Host memory. MLA_ERR_ARGUMENT (a slot outside the cache, other than -1, writes
 * nothing at all). One thread per cache at a time. */
MLA_API mla_status mla_index_append(mla_index_format format, int64_t dim, int64_t page_size,
                                    int64_t num_pages, int64_t page_bytes, const int64_t *slots,
                                    int64_t rows, const void *data, const void *scale, void *cache);

/* Rotary frequencies inv_freq[rope_dim/2]: theta^(-2i/rope_dim), and with factor > 1 YaRN's blend
 * towards 1/factor of them (original = trained context, beta_fast 32, beta_slow 1 in DeepSeek).
 * MLA_ERR_ARGUMENT. Any thread. */
MLA_API mla_status mla_rope_frequencies(int64_t rope_dim, double theta, double factor,
                                        double original, double beta_fast, double beta_slow,
                                        float *inv_freq);

#ifdef __cplusplus
}
#endif
#endif
