/* SPDX-License-Identifier: Apache-2.0 */
/* cuBLAS behind dlopen, one handle a context. */
#include "blas.h"

#include "status.h"

#include <cublas_v2.h>
#include <dlfcn.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct mla_blas {
    pthread_mutex_t lock;
    cublasHandle_t handle; /* NULL until opened */
};

/* Spelt out: the header's names may be macros. */
struct functions {
    cublasStatus_t (*create)(cublasHandle_t *);
    cublasStatus_t (*destroy)(cublasHandle_t);
    cublasStatus_t (*set_stream)(cublasHandle_t, cudaStream_t);
    cublasStatus_t (*set_workspace)(cublasHandle_t, void *, size_t);
    cublasStatus_t (*set_math_mode)(cublasHandle_t, cublasMath_t);
    cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                           const void *, const void *, cudaDataType, int, long long, const void *,
                           cudaDataType, int, long long, const void *, void *, cudaDataType, int,
                           long long, int, cublasComputeType_t, cublasGemmAlgo_t);
};

static struct functions lib;
static char missing[120];

static void load(void)
{
    static const char *const names[] = {"cublasCreate_v2",    "cublasDestroy_v2",
                                        "cublasSetStream_v2", "cublasSetWorkspace_v2",
                                        "cublasSetMathMode",  "cublasGemmStridedBatchedEx"};
    void *found[sizeof names / sizeof *names];
    char file[32];
    snprintf(file, sizeof file, "libcublas.so.%d", CUBLAS_VER_MAJOR);
    void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL); /* stays: functions are kept */
    if (!handle) {
        snprintf(missing, sizeof missing, "%s is not found", file);
        return;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        found[i] = dlsym(handle, names[i]);
        if (!found[i]) {
            snprintf(missing, sizeof missing, "%s has no %s", file, names[i]);
            return;
        }
    }
    /* ISO C has no cast from object to function pointers; POSIX gives them one representation. */
    memcpy(&lib, found, sizeof lib);
}

static bool found(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return !missing[0];
}

bool mla_blas_found(char *why, size_t bytes)
{
    if (!found())
        snprintf(why, bytes, "%s", missing);
    return found();
}

static mla_status blas_fail(const char *call, cublasStatus_t status)
{
    static const struct {
        cublasStatus_t status;
        const char *text;
    } texts[] = {{CUBLAS_STATUS_NOT_INITIALIZED, "not initialised"},
                 {CUBLAS_STATUS_ALLOC_FAILED, "allocation failed"},
                 {CUBLAS_STATUS_INVALID_VALUE, "invalid value"},
                 {CUBLAS_STATUS_ARCH_MISMATCH, "not on this architecture"},
                 {CUBLAS_STATUS_EXECUTION_FAILED, "execution failed"},
                 {CUBLAS_STATUS_INTERNAL_ERROR, "internal error"},
                 {CUBLAS_STATUS_NOT_SUPPORTED, "not supported"}};
    const char *text = "other error";
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].status == status)
            text = texts[i].text;
    return mla_fail(status == CUBLAS_STATUS_ALLOC_FAILED ? MLA_ERR_MEMORY : MLA_ERR_CUDA,
                    "%s: cuBLAS status %d, %s", call, (int)status, text);
}

mla_status mla_blas_create(struct mla_blas **out)
{
    struct mla_blas *blas = mla_alloc(1, sizeof *blas);
    *out = blas;
    if (!blas)
        return mla_fail(MLA_ERR_MEMORY, "mla_context_create: cannot allocate a cuBLAS handle");
    pthread_mutex_init(&blas->lock, NULL); /* never fails for a default mutex on Linux */
    return MLA_OK;
}

void mla_blas_destroy(struct mla_blas *blas)
{
    if (!blas)
        return;
    if (blas->handle)
        lib.destroy(blas->handle);
    pthread_mutex_destroy(&blas->lock);
    mla_free(blas);
}

mla_status mla_blas_open(struct mla_blas *blas)
{
    mla_status status = MLA_OK;
    if (!found())
        return mla_fail(MLA_ERR_UNSUPPORTED, "mla_plan_create: %s", missing);
    pthread_mutex_lock(&blas->lock);
    if (!blas->handle) {
        cublasStatus_t error = lib.create(&blas->handle);
        /* Partial sums of a split k stay fp32 too. */
        if (error == CUBLAS_STATUS_SUCCESS)
            error =
                lib.set_math_mode(blas->handle,
                                  (cublasMath_t)(CUBLAS_DEFAULT_MATH |
                                                 CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
        if (error != CUBLAS_STATUS_SUCCESS) {
            if (blas->handle)
                lib.destroy(blas->handle);
            blas->handle = NULL;
            status = blas_fail("mla_plan_create: cublasCreate", error);
        }
    }
    pthread_mutex_unlock(&blas->lock);
    return status;
}

static cudaDataType type_of(mla_dtype dtype)
{
    return dtype == MLA_BF16 ? CUDA_R_16BF : dtype == MLA_F16 ? CUDA_R_16F : CUDA_R_32F;
}

static mla_status run_one(struct mla_blas *blas, const struct mla_gemm *g)
{
    const float one = 1, zero = 0;
    if (g->m > INT32_MAX || g->n > INT32_MAX || g->k > INT32_MAX || g->lda > INT32_MAX ||
        g->ldb > INT32_MAX || g->ldc > INT32_MAX || g->batch > INT32_MAX)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_run: strides: got %" PRId64 ", %" PRId64 ", %" PRId64
                        " elements from row to row, want less than 2^31",
                        g->lda, g->ldb, g->ldc);
    cublasStatus_t error =
        lib.gemm(blas->handle, g->transpose ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, (int)g->m,
                 (int)g->n, (int)g->k, &one, g->a, type_of(g->in), (int)g->lda, g->step_a, g->b,
                 type_of(g->in), (int)g->ldb, g->step_b, &zero, g->c, type_of(g->out), (int)g->ldc,
                 g->step_c, (int)g->batch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    return error == CUBLAS_STATUS_SUCCESS ? MLA_OK
                                          : blas_fail("mla_run: cublasGemmStridedBatchedEx", error);
}

mla_status mla_blas_run(struct mla_blas *blas, const struct mla_gemm *list, int count,
                        void *workspace, void *stream)
{
    mla_status status = MLA_OK;
    pthread_mutex_lock(&blas->lock);
    cublasStatus_t error = lib.set_stream(blas->handle, stream);
    if (error == CUBLAS_STATUS_SUCCESS) /* a new stream takes the workspace away */
        error = lib.set_workspace(blas->handle, workspace, MLA_BLAS_BYTES);
    if (error != CUBLAS_STATUS_SUCCESS)
        status = blas_fail("mla_run: cublasSetWorkspace", error);
    for (int i = 0; status == MLA_OK && i < count; i++)
        if (list[i].m > 0 && list[i].n > 0 && list[i].k > 0 && list[i].batch > 0)
            status = run_one(blas, &list[i]);
    pthread_mutex_unlock(&blas->lock);
    return status;
}
