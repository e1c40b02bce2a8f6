/* SPDX-License-Identifier: Apache-2.0 */
/* The timeline adds up where the answer is known: wavefronts of accesses, clocks of the tensor
 * core, 2^x. */
#include "harness.h"
#include "tests.h"

#include "element.cuh"
#include "ptx/convert.cuh"
#include "ptx/launch.cuh"
#include "ptx/shared.cuh"
#include "ptx/wgmma.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Stores of each size and stride that a warp's lanes can have. */
__global__ void stores(const __grid_constant__ test_args args)
{
    MLA_ROLE("store");
    u32 smem = dynamic_smem() + threadIdx.x * (u32)args.p[1];
    if (args.p[0] == 4)
        st_shared<u32>(smem, 1);
    else if (args.p[0] == 8)
        st_shared(smem, make_uint2(1, 2));
    else
        st_shared(smem, make_uint4(1, 2, 3, 4));
}

/* 64 x 256 x 16 products, p[0] times. */
__global__ void timed_products(const __grid_constant__ test_args args)
{
    MLA_ROLE("multiply");
    u32 smem = dynamic_smem();
    for (u32 i = threadIdx.x; i < 16384 / 16; i += blockDim.x)
        st_shared(smem + 16 * i, make_uint4(0, 0, 0, 0));
    fence_proxy_async();
    __syncthreads();
    float d[128];
    wgmma_fence();
    for (int i = 0; i < args.p[0]; i++)
        wgmma_ss<bf16, 256>(d, wgmma_desc(smem, 128, 256, 0), wgmma_desc(smem + 2048, 128, 256, 0),
                            i > 0);
    wgmma_commit();
    wgmma_wait<0>();
    args.out[threadIdx.x] = __float_as_uint(d[0]);
}

__global__ void powers(const __grid_constant__ test_args args)
{
    MLA_ROLE("power");
    float x = -1;
    for (int i = 0; i < args.p[0]; i++)
        x = ex2_approx_ftz(x);
    __syncwarp();
    args.out[threadIdx.x] = __float_as_uint(x);
}

static bool any(const struct test_args *)
{
    return true;
}

static char path[] = "/tmp/model_timeline_XXXXXX";

/* The number behind a word at the beginning of a line of the table. */
static double row(const char *word, int column)
{
    char line[1024];
    FILE *f = fopen(path, "r");
    double value = -1;
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, word, strlen(word)) != 0)
            continue;
        char *at = line + strlen(word);
        for (int i = 0; i <= column; i++)
            value = strtod(at, &at), at += *at == '%';
        break;
    }
    if (f != NULL)
        fclose(f);
    return value;
}

static void run(const char *name, const void *kernel, unsigned threads, struct test_args *args)
{
    struct test_launch launch = {kernel, 1, 1, threads, 90};
    fclose(fopen(path, "w")); /* forgets the launch before */
    setenv("MLA_MODEL_TIMELINE", path, 1);
    test_once(name, &launch, args, any);
    unsetenv("MLA_MODEL_TIMELINE");
}

void test_timeline(void)
{
    /* bytes of a lane, stride, wavefronts, of them by conflicts */
    static const int patterns[][4] = {{4, 4, 1, 0},   {4, 8, 2, 1},      {4, 128, 32, 31},
                                      {4, 132, 1, 0}, {8, 8, 2, 0},      {8, 128, 32, 30},
                                      {16, 16, 4, 0}, {16, 128, 32, 28}, {16, 144, 4, 0},
                                      {16, 32, 8, 4}};
    struct test_args args = {};
    int file = mkstemp(path);
    if (file < 0)
        return;
    close(file);
    for (const int *p : patterns) {
        char name[80];
        args.p[0] = p[0], args.p[1] = p[1];
        snprintf(name, sizeof name, "timeline: %d bytes a lane, %d apart", p[0], p[1]);
        run(name, mla_kernel_address(stores), 32, &args);
        /* columns: warps work wait issue FMA ALU MUFU tensor operands wavefronts conflicts */
        test_expect(row("store", 9) == p[2] && row("store", 10) == p[3], name);
    }
    args.p[0] = 64;
    run("timeline: wgmma", mla_kernel_address(timed_products), 128, &args);
    test_expect(row("tensor core", 0) == 64 * 128, "timeline: clocks of wgmma");
    double read = 64 * (2048 + 8192); /* the table rounds */
    test_expect(row("multiply", 8) > 0.99 * read && row("multiply", 8) < 1.01 * read,
                "timeline: bytes of operands");
    args.p[0] = 1000;
    run("timeline: 2^x", mla_kernel_address(powers), 128, &args);
    test_expect(row("MUFU", 0) == 8000 && row("cluster: mean", 0) >= 8000 &&
                    row("cluster: mean", 0) < 8200,
                "timeline: clocks of 2^x");
    unlink(path);
}
