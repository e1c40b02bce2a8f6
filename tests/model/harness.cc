/* SPDX-License-Identifier: Apache-2.0 */
/* The runner of the functional model's tests, and main. */
#include "harness.h"

#include "tests.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef MLA_MSAN
#include <sys/wait.h>
#include <unistd.h>
#endif

uint32_t *test_out, *test_in;

static int num_tests, num_failed;
static const char *const schedules[] = {"eager", "late", "random:1", "random:2", "random:3"};
enum { SCHEDULES = sizeof schedules / sizeof *schedules, DYNAMIC_BYTES = 200 << 10 };

void test_expect(bool good, const char *name)
{
    num_tests++;
    if (good)
        return;
    num_failed++;
    printf("FAILED %s\n", name);
}

/* NULL, or the report. */
static const char *run(const struct test_launch *l, struct test_args *args, const char *schedule)
{
    static char text[2048];
    char sm[8];
    snprintf(sm, sizeof sm, "%d", l->sm);
    setenv("MLA_MODEL_SM", sm, 1);
    setenv("MLA_MODEL_SCHEDULE", schedule, 1);
    memset(test_out, 0xEE, 4 * (size_t)OUT_WORDS);
    args->out = test_out;
    args->in = test_in;
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute;
    memset(&attribute, 0, sizeof attribute);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = l->cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(l->blocks, 1, 1);
    config.blockDim = dim3(l->threads, 1, 1);
    config.dynamicSmemBytes = DYNAMIC_BYTES;
    config.attrs = &attribute;
    config.numAttrs = 1;
    void *params[] = {args};
    cudaError_t error =
        cudaFuncSetAttribute(l->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DYNAMIC_BYTES);
    if (error == cudaSuccess)
        error = cudaLaunchKernelExC(&config, l->kernel, params);
    if (error == cudaSuccess)
        return NULL;
    snprintf(text, sizeof text, "%s", cudaGetErrorString(error));
    return text;
}

void test_right(const char *name, const struct test_launch *l, struct test_args *args,
                bool (*check)(const struct test_args *args))
{
    static uint32_t first[OUT_WORDS];
    num_tests++;
    for (int s = 0; s < SCHEDULES; s++) {
        const char *report = run(l, args, schedules[s]);
        bool same = s == 0 || memcmp(first, test_out, sizeof first) == 0;
        if (s == 0)
            memcpy(first, test_out, sizeof first);
        if (report == NULL && check(args) && same)
            continue;
        printf("FAILED %s, %s: %s\n", name, schedules[s],
               report ? report
               : same ? "wrong output"
                      : "another output than eager's");
        num_failed++;
        return;
    }
}

void test_once(const char *name, const struct test_launch *l, struct test_args *args,
               bool (*check)(const struct test_args *args))
{
    num_tests++;
    const char *report = run(l, args, schedules[0]);
    if (report == NULL && check(args))
        return;
    printf("FAILED %s: %s\n", name, report ? report : "wrong output");
    num_failed++;
}

void test_wrong(const char *name, const struct test_launch *l, struct test_args *args,
                enum test_when when, const char *text)
{
    num_tests++;
    for (int s = 0; s < SCHEDULES; s++) {
        if (when == LATE && s != 1)
            continue;
        const char *report = run(l, args, schedules[s]);
        if (report != NULL && strstr(report, text) != NULL)
            continue;
        printf("FAILED %s, %s: want a report with \"%s\", got: %s\n", name, schedules[s], text,
               report ? report : "no report");
        num_failed++;
        return;
    }
}

#ifdef MLA_MSAN
/* MemorySanitizer ends the process that uses what is not there yet. */
void test_spoilt(const char *name, const struct test_launch *l, struct test_args *args,
                 bool (*check)(const struct test_args *args))
{
    num_tests++;
    for (int s = 0; s < SCHEDULES; s++) {
        int status = 0;
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            if (!freopen("/dev/null", "w", stderr))
                _exit(0);
            bool right = run(l, args, schedules[s]) == NULL && check(args);
            _exit(right ? 0 : 3); /* no report of the sanitizer's */
        }
        if (child > 0 && waitpid(child, &status, 0) == child && status != 0 &&
            (!WIFEXITED(status) || WEXITSTATUS(status) != 3))
            continue;
        printf("FAILED %s, %s: MemorySanitizer says nothing\n", name, schedules[s]);
        num_failed++;
        return;
    }
}
#else
void test_spoilt(const char *name, const struct test_launch *l, struct test_args *args,
                 bool (*check)(const struct test_args *args))
{
    num_tests++;
    for (int s = 0; s < SCHEDULES; s++) {
        const char *report = run(l, args, schedules[s]);
        if (report == NULL && !check(args))
            continue;
        printf("FAILED %s, %s: want a wrong output, got: %s\n", name, schedules[s],
               report ? report : "the right one");
        num_failed++;
        return;
    }
}
#endif

int main(void)
{
    if (cudaMalloc((void **)&test_out, 4 * (size_t)OUT_WORDS) != cudaSuccess ||
        cudaMalloc((void **)&test_in, 4 * (size_t)OUT_WORDS) != cudaSuccess) {
        printf("out of memory\n");
        return 1;
    }
    for (uint32_t i = 0; i < OUT_WORDS; i++)
        test_in[i] = i * 2654435761u ^ i >> 3;
    test_threads();
    test_threads_wrong();
    test_tensor_memory();
    test_tensor_shapes();
    test_wgmma();
    test_tma();
    test_locals();
    test_timeline();
    printf("%d tests, %d failed\n", num_tests, num_failed);
    cudaFree(test_out);
    cudaFree(test_in);
    return num_failed != 0;
}
