/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products by cuBLAS. The library is looked up when a plan first needs it (dlopen), so
 * libmla also loads where only the driver, or nothing of CUDA, is installed. One handle a context,
 * used under a lock while products are enqueued; its workspace comes from the caller, so any number
 * of runs may be under way, results do not depend on what else runs, and a graph can capture
 * them. */
#ifndef MLA_CUDA_BLAS_H
#define MLA_CUDA_BLAS_H

#include "mla/mla.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Device bytes that mla_blas_run is given, 256-byte aligned. */
#define MLA_BLAS_BYTES ((size_t)8 << 20)

struct mla_blas;

/* Allocates the lock and the empty handle. */
mla_status mla_blas_create(struct mla_blas **out);
void mla_blas_destroy(struct mla_blas *blas);
/* Is cuBLAS found? If not, why. */
bool mla_blas_found(char *why, size_t bytes);
/* Makes the handle, if this is the first call. The context's device is current. */
mla_status mla_blas_open(struct mla_blas *blas);

/* C = op(A) · B for each of `batch`, column-major: A is m x k (k x m and transposed if transpose),
 * B is k x n, C m x n; ld and step (from one of the batch to the next) in elements. fp32
 * accumulation. */
struct mla_gemm {
    bool transpose;
    int64_t m, n, k, batch;
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc, step_a, step_b, step_c;
    mla_dtype in, out; /* bf16 or f16; the same or f32 */
};

/* Enqueues one after another; those without elements are skipped. */
mla_status mla_blas_run(struct mla_blas *blas, const struct mla_gemm *list, int count,
                        void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
