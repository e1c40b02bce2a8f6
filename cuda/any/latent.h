/* SPDX-License-Identifier: Apache-2.0 */
/* Around the attention of latent problems: cache rows as plain 16-bit rows, rope parts put beside
 * projected parts. What the host passes to the kernels of latent.cu. Plain C, shared by host and
 * device code. */
#ifndef MLA_CUDA_ANY_LATENT_H
#define MLA_CUDA_ANY_LATENT_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_LATENT_THREADS = 256 };

/* A request whose cache rows are gathered. */
struct mla_latent_request {
    int32_t index, seq_len_kv;
    int64_t first_word; /* words of 32 keys in the requests before */
    int64_t first_key;  /* its first row in the gathered rows */
    int64_t kv_start;   /* and in a flat cache */
};

/* Rows of requests, dequantised, to c [keys, rank] and rope [keys, rope_dim], and a bit for each
 * key in alive. Keys past the run's length and keys of pages that do not exist are zero, bit and
 * row. */
struct mla_gather_args {
    const struct mla_latent_request *requests; /* device */
    int32_t num_requests;
    int32_t format, rank, rope_dim;
    int32_t page_size; /* 0 = flat */
    int32_t num_pages, max_pages;
    const int32_t *page_table, *seq_lens_kv; /* seq_lens_kv or NULL */
    int64_t page_table_stride;
    const char *data, *rope; /* plain formats: first row's latent and rope part */
    int64_t row_bytes, rope_row_bytes, page_bytes;
    int32_t record_bytes; /* packed */
    int32_t is_bf16;      /* what is written */
    uint16_t *c_out, *rope_out;
    uint32_t *alive;
};

/* out[i, h, :width] = in[i, h, :width] for 16-bit elements; a stride of 0 repeats a row. */
struct mla_spread_args {
    const uint16_t *in;
    uint16_t *out;
    int64_t rows;
    int32_t heads, width;
    int64_t in_stride[2], out_stride[2];
};

/* Lengths of a pass that leaves the last `by` rows of a causal request to the next: to the rows
 * that stay, the keys before them are all there are. */
struct mla_shorten_args {
    const int32_t *in;
    int32_t *out;
    int32_t count, index, by;
};

const void *mla_gather_function(void);
const void *mla_spread_function(void);
const void *mla_shorten_function(void);

#ifdef __cplusplus
}
#endif
#endif
