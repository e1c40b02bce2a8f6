/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA runtime's functions over the model. The environment says what is modelled: MLA_MODEL_SM
 * (80, 90, 100, 120; 100 if not set), MLA_MODEL_SMS (processors, 4), MLA_MODEL_SCHEDULE (eager,
 * late, random:SEED). It is read at every launch: a program may change it between launches. */
#include "cuda_runtime_api.h"

#include "launch.h"
#include "schedule.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static thread_local cudaError_t last_error;
static thread_local char last_text[sizeof model_error_text];

static cudaError_t fail(cudaError_t error, const char *text)
{
    snprintf(last_text, sizeof last_text, "%s", text);
    return last_error = error;
}

/* What the environment asks for; a sentence if it makes no sense. */
static const char *read_device(struct model_device *d)
{
    const char *sm = getenv("MLA_MODEL_SM"), *sms = getenv("MLA_MODEL_SMS"),
               *schedule = getenv("MLA_MODEL_SCHEDULE");
    char *end;
    *d = (struct model_device){};
    d->sm = sm && *sm ? atoi(sm) : 100;
    d->processors = sms && *sms ? atoi(sms) : 4;
    if (d->sm != 80 && d->sm != 90 && d->sm != 100 && d->sm != 120)
        return "MLA_MODEL_SM: want 80, 90, 100 or 120";
    if (d->processors < 1 || d->processors > 1024)
        return "MLA_MODEL_SMS: want 1 to 1024";
    d->shared_bytes = d->sm == 120 ? 101376 : d->sm == 80 ? 166912 : 232448;
    if (!schedule || !*schedule || !strcmp(schedule, "eager")) {
        d->schedule = MODEL_EAGER;
    } else if (!strcmp(schedule, "late")) {
        d->schedule = MODEL_LATE;
    } else if (!strncmp(schedule, "random:", 7) && schedule[7]) {
        d->schedule = MODEL_RANDOM;
        d->seed = strtoull(schedule + 7, &end, 10);
        if (*end)
            return "MLA_MODEL_SCHEDULE: want eager, late or random:SEED";
    } else {
        return "MLA_MODEL_SCHEDULE: want eager, late or random:SEED";
    }
    return NULL;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    struct model_device d;
    const char *why = read_device(&d);
    *count = why ? 0 : 1;
    return why ? fail(cudaErrorNoDevice, why) : cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice, "the model is device 0");
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    struct model_device d;
    const char *why = read_device(&d);
    if (why || device)
        return fail(cudaErrorInvalidDevice, why ? why : "the model is device 0");
    *prop = (struct cudaDeviceProp){};
    snprintf(prop->name, sizeof prop->name, "functional model");
    prop->totalGlobalMem = (size_t)4 << 30;
    prop->sharedMemPerBlockOptin = d.shared_bytes;
    prop->major = d.sm / 10;
    prop->minor = d.sm % 10;
    prop->multiProcessorCount = d.processors;
    prop->l2CacheSize = 50 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    struct model_device d;
    const char *why = read_device(&d);
    if (why || device)
        return fail(cudaErrorInvalidDevice, why ? why : "the model is device 0");
    switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 49152;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = d.processors;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = d.sm / 10;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = d.sm % 10;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)d.shared_bytes;
        break;
    default:
        return fail(cudaErrorInvalidValue, "attribute the model does not know");
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 0;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 0;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

/* Of the last failure, in the thread: it says more than the code. */
const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : last_text;
}

const char *cudaGetErrorName(cudaError_t error)
{
    static const struct {
        cudaError_t error;
        const char *name;
    } names[] = {{cudaSuccess, "cudaSuccess"},
                 {cudaErrorInvalidValue, "cudaErrorInvalidValue"},
                 {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation"},
                 {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration"},
                 {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction"},
                 {cudaErrorNoDevice, "cudaErrorNoDevice"},
                 {cudaErrorInvalidDevice, "cudaErrorInvalidDevice"},
                 {cudaErrorLaunchFailure, "cudaErrorLaunchFailure"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].error == error)
            return names[i].name;
    return "unknown error";
}

cudaError_t cudaDeviceSynchronize(void)
{
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **pointer, size_t bytes)
{
    *pointer = aligned_alloc(256, (bytes + 256) & ~(size_t)255);
    if (!*pointer)
        return fail(cudaErrorMemoryAllocation, "out of memory");
    memset(*pointer, 0xFF, bytes); /* device memory starts as anything */
    return cudaSuccess;
}

cudaError_t cudaFree(void *pointer)
{
    free(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind)
{
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind,
                            cudaStream_t)
{
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *pointer, int value, size_t bytes)
{
    memset(pointer, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *pointer, int value, size_t bytes, cudaStream_t)
{
    memset(pointer, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    struct model_device d;
    const char *why = read_device(&d);
    struct model_kernel *k = (struct model_kernel *)(uintptr_t)kernel;
    if (why)
        return fail(cudaErrorInvalidDevice, why);
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || (uint32_t)value > d.shared_bytes) {
            char text[100];
            snprintf(text, sizeof text, "%d bytes of dynamic shared memory, at most %u on sm_%d",
                     value, d.shared_bytes, d.sm);
            return fail(cudaErrorInvalidValue, text);
        }
        k->dynamic_bytes_allowed = value;
    } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
        k->cluster_any = value != 0;
    } else {
        return fail(cudaErrorInvalidValue, "attribute the model does not know");
    }
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads,
                                                          size_t dynamic_bytes)
{
    struct model_device d;
    const char *why = read_device(&d);
    if (why)
        return fail(cudaErrorInvalidDevice, why);
    size_t each = dynamic_bytes + 1024;
    int by_memory = (int)((d.shared_bytes + 1024) / each), by_threads = 2048 / threads;
    *blocks = by_memory < by_threads ? by_memory : by_threads;
    return cudaSuccess;
}

static bool inside(dim3 d, unsigned x, unsigned y, unsigned z)
{
    return d.x >= 1 && d.y >= 1 && d.z >= 1 && d.x <= x && d.y <= y && d.z <= z;
}

static cudaError_t launch(const void *kernel, dim3 grid, dim3 block, dim3 cluster, void **args,
                          size_t dynamic_bytes)
{
    struct model_kernel *k = (struct model_kernel *)(uintptr_t)kernel;
    struct model_device device;
    const char *why = read_device(&device);
    char text[160];
    if (why)
        return fail(cudaErrorInvalidDevice, why);
    uint64_t threads = (uint64_t)block.x * block.y * block.z,
             size = (uint64_t)cluster.x * cluster.y * cluster.z;
    if (!inside(grid, INT32_MAX, 65535, 65535) || !inside(block, 1024, 1024, 64) ||
        threads > MODEL_MAX_THREADS) {
        snprintf(text, sizeof text, "a grid of (%u,%u,%u) blocks of (%u,%u,%u) threads", grid.x,
                 grid.y, grid.z, block.x, block.y, block.z);
        return fail(cudaErrorInvalidConfiguration, text);
    }
    if (!inside(cluster, 16, 16, 16) || size > (k->cluster_any ? 16u : 8u) || grid.x % cluster.x ||
        grid.y % cluster.y || grid.z % cluster.z ||
        (size > 1 && (device.sm < 90 || device.sm == 120))) {
        snprintf(text, sizeof text,
                 "a cluster of (%u,%u,%u) blocks in a grid of (%u,%u,%u) on sm_%d", cluster.x,
                 cluster.y, cluster.z, grid.x, grid.y, grid.z, device.sm);
        return fail(cudaErrorInvalidConfiguration, text);
    }
    size_t allowed = k->dynamic_bytes_allowed > 49152 ? (size_t)k->dynamic_bytes_allowed : 49152;
    if (dynamic_bytes > allowed || dynamic_bytes > device.shared_bytes) {
        snprintf(text, sizeof text, "%zu bytes of dynamic shared memory, allowed are %zu",
                 dynamic_bytes, allowed);
        return fail(cudaErrorInvalidValue, text);
    }
    struct model_launch l = {{grid.x, grid.y, grid.z},
                             {block.x, block.y, block.z},
                             {cluster.x, cluster.y, cluster.z},
                             (uint32_t)dynamic_bytes};
    pthread_mutex_lock(&lock);
    model_device = device;
    bool good = model_launch_run(k, &l, args);
    cudaError_t error = good ? cudaSuccess : fail(cudaErrorLaunchFailure, model_error_text);
    pthread_mutex_unlock(&lock);
    return error;
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args,
                             size_t dynamic_bytes, cudaStream_t)
{
    return launch(kernel, grid, block, dim3(1, 1, 1), args, dynamic_bytes);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **args)
{
    dim3 cluster(1, 1, 1);
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttribute *a = &config->attrs[i];
        if (a->id == cudaLaunchAttributeClusterDimension)
            cluster = dim3(a->val.clusterDim.x, a->val.clusterDim.y, a->val.clusterDim.z);
        else if (a->id != cudaLaunchAttributeIgnore &&
                 a->id != cudaLaunchAttributeProgrammaticStreamSerialization)
            return fail(cudaErrorInvalidValue, "launch attribute the model does not know");
    }
    return launch(kernel, config->gridDim, config->blockDim, cluster, args,
                  config->dynamicSmemBytes);
}
