/* SPDX-License-Identifier: Apache-2.0 */
/* cuda/blas.h for the model: plain loops on the host, fp32 accumulation in the order of k. */
#include "cuda/blas.h"

#include "format.h"
#include "status.h"

#include <stdlib.h>
#include <string.h>

struct mla_blas {
    int unused; /* there is no handle */
};

mla_status mla_blas_create(struct mla_blas **out)
{
    *out = mla_alloc(1, sizeof **out);
    return *out ? MLA_OK
                : mla_fail(MLA_ERR_MEMORY, "mla_context_create: cannot allocate a BLAS handle");
}

void mla_blas_destroy(struct mla_blas *blas)
{
    mla_free(blas);
}

bool mla_blas_found(char *why, size_t bytes)
{
    (void)why;
    (void)bytes;
    return true;
}

mla_status mla_blas_open(struct mla_blas *blas)
{
    (void)blas;
    return MLA_OK;
}

static float load(mla_dtype dtype, const void *data, int64_t at)
{
    if (dtype == MLA_BF16)
        return mla_bf16_to_f32(((const uint16_t *)data)[at]);
    if (dtype == MLA_F16)
        return mla_f16_to_f32(((const uint16_t *)data)[at]);
    return ((const float *)data)[at];
}

static void store(mla_dtype dtype, void *data, int64_t at, float x)
{
    if (dtype == MLA_BF16)
        ((uint16_t *)data)[at] = mla_f32_to_bf16(x);
    else if (dtype == MLA_F16)
        ((uint16_t *)data)[at] = mla_f32_to_f16(x);
    else
        ((float *)data)[at] = x;
}

/* A piece of A is widened once, into the workspace, and used for every column of B. */
enum { PIECE = 64 };

static void run_one(const struct mla_gemm *g, int64_t batch, float *wide)
{
    int64_t a0 = batch * g->step_a, b0 = batch * g->step_b, c0 = batch * g->step_c;
    for (int64_t i0 = 0; i0 < g->m; i0 += PIECE) {
        int64_t rows = g->m - i0 < PIECE ? g->m - i0 : PIECE;
        for (int64_t k = 0; k < g->k; k++)
            for (int64_t i = 0; i < rows; i++)
                wide[k * PIECE + i] =
                    load(g->in, g->a,
                         a0 + (g->transpose ? (i0 + i) * g->lda + k : k * g->lda + i0 + i));
        for (int64_t j = 0; j < g->n; j++) {
            float sum[PIECE] = {0};
            for (int64_t k = 0; k < g->k; k++) {
                float b = load(g->in, g->b, b0 + j * g->ldb + k);
                for (int64_t i = 0; i < rows; i++)
                    sum[i] += wide[k * PIECE + i] * b;
            }
            for (int64_t i = 0; i < rows; i++)
                store(g->out, g->c, c0 + j * g->ldc + i0 + i, sum[i]);
        }
    }
}

mla_status mla_blas_run(struct mla_blas *blas, const struct mla_gemm *list, int count,
                        void *workspace, void *stream)
{
    (void)blas;
    (void)stream;
    for (int i = 0; i < count; i++) {
        const struct mla_gemm *g = &list[i];
        if (g->m <= 0 || g->n <= 0 || g->k <= 0)
            continue;
        if ((size_t)g->k * PIECE * sizeof(float) > MLA_BLAS_BYTES)
            return mla_fail(MLA_ERR_UNSUPPORTED, "mla_run: k: got %lld, want at most %zu",
                            (long long)g->k, MLA_BLAS_BYTES / PIECE / sizeof(float));
        for (int64_t b = 0; b < g->batch; b++)
            run_one(g, b, workspace);
    }
    return MLA_OK;
}
