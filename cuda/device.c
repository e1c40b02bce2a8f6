/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA devices: opening a context, checked calls, the current device. The CUDA runtime is linked
 * statically and looks for the driver when first called, so the library loads without one. */
#include "device.h"

#include "blas.h"
#include "status.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

mla_status mla_cuda_fail(const char *function, const char *call, cudaError_t error)
{
    /* Takes the error off the thread, unless it is one that stays. */
    cudaGetLastError();
    return mla_fail(error == cudaErrorMemoryAllocation ? MLA_ERR_MEMORY : MLA_ERR_CUDA,
                    "%s: %s: %s (%s)", function, call, cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

cudaError_t mla_cuda_upload(void *device, const void *host, size_t bytes)
{
    cudaError_t error = cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice);
    return error == cudaSuccess ? cudaStreamSynchronize(cudaStreamLegacy) : error;
}

mla_status mla_cuda_allow_shared(const void *function, size_t dynamic, size_t most)
{
    size_t fixed = 0;
#ifndef MLA_MODEL
    struct cudaFuncAttributes attributes;
    MLA_CUDA(cudaFuncGetAttributes(&attributes, function));
    fixed = attributes.sharedSizeBytes;
#endif
    if (most && fixed + dynamic > most)
        return mla_fail(MLA_ERR_UNSUPPORTED,
                        "%s: shared memory: a block wants %zu bytes, at most %zu go on every GPU",
                        __func__, fixed + dynamic, most);
    MLA_CUDA(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)dynamic));
    return MLA_OK;
}

mla_status mla_cuda_enter(const mla_context *context, int *before)
{
    MLA_CUDA(cudaGetDevice(before));
    if (*before != context->device)
        MLA_CUDA(cudaSetDevice(context->device));
    return MLA_OK;
}

void mla_cuda_leave(const mla_context *context, int before)
{
    if (before != context->device)
        cudaSetDevice(before);
}

mla_status mla_cuda_open(const mla_context_options *options, mla_context *context)
{
    int count = 0, driver = 0, runtime = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        cudaGetLastError();
        const char *why =
            error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error);
        if (error != cudaSuccess && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
            why = "there is no NVIDIA driver here (libcuda.so.1)";
        return mla_fail(MLA_ERR_NO_DEVICE, "mla_context_create: no CUDA device: %s", why);
    }
    if (options->device >= count)
        return mla_fail(MLA_ERR_NO_DEVICE, "mla_context_create: device: got %d, want 0 to %d",
                        options->device, count - 1);
    struct cudaDeviceProp prop;
    error = cudaGetDeviceProperties(&prop, options->device);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return mla_fail(MLA_ERR_DEVICE, "mla_context_create: device %d: %s", options->device,
                        cudaGetErrorString(error));
    }
    if (prop.major < 8)
        return mla_fail(MLA_ERR_NO_DEVICE,
                        "mla_context_create: device %d is %s of compute capability %d.%d, want 8.0 "
                        "or later",
                        options->device, prop.name, prop.major, prop.minor);
    context->sm = 10 * prop.major + prop.minor;
    context->threads = 1;
#ifdef MLA_MODEL
    (void)driver;
    (void)runtime;
    const char *schedule = getenv("MLA_MODEL_SCHEDULE");
    snprintf(context->about, sizeof context->about,
             "functional model of sm_%d, %d SMs, schedule %.40s", context->sm,
             prop.multiProcessorCount, schedule && *schedule ? schedule : "eager");
#else
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    snprintf(context->about, sizeof context->about,
             "cuda device %d: %.60s, sm_%d, %d SMs, %.1f GiB, driver CUDA %d.%d, runtime %d.%d",
             options->device, prop.name, context->sm, prop.multiProcessorCount,
             (double)prop.totalGlobalMem / (1 << 30), driver / 1000, driver % 1000 / 10,
             runtime / 1000, runtime % 1000 / 10);
#endif
    snprintf(context->identity, sizeof context->identity, "%.60s, sm_%d, driver CUDA %d.%d",
             prop.name, context->sm, driver / 1000, driver % 1000 / 10);
    struct mla_blas *blas;
    mla_status status = mla_blas_create(&blas);
    context->data = blas;
    return status;
}

void mla_cuda_close(mla_context *context)
{
    mla_blas_destroy(context->data); /* nothing else: plans own their device memory */
}

static bool present;

static void look(void)
{
    int count = 0, major = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess) {
        cudaGetLastError();
        return;
    }
    present = major >= 8;
}

bool mla_cuda_runnable(const struct mla_kernel *kernel)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)kernel; /* one family so far: all rows run on every device from sm_80 */
    pthread_once(&once, look);
    return present;
}
