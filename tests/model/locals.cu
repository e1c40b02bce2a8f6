/* SPDX-License-Identifier: Apache-2.0 */
/* Locals of a kernel that nobody has set. The model can't see them: a build with MemorySanitizer
 * does (preset msan), and only there is the wrong kernel run. */
#include "harness.h"
#include "tests.h"

#include "ptx/launch.cuh"
#include "ptx/shared.cuh"

__global__ void sums(const __grid_constant__ test_args args)
{
    u32 part[4], smem = dynamic_smem();
    for (int i = 0; i < (args.wrong ? 3 : 4); i++)
        part[i] = threadIdx.x + i;
    __syncwarp();
    /* Through shared memory and a shuffle: what is not set stays so. */
    st_shared<u32>(smem + 4 * threadIdx.x, part[3]);
    u32 last = __shfl_xor_sync(~0u, ld_shared<u32>(smem + 4 * threadIdx.x), 1);
    args.out[threadIdx.x] = part[0] + part[1] + part[2] + last;
}

static bool check(const struct test_args *args)
{
    for (u32 i = 0; i < 32; i++)
        if (args->out[i] != 3 * i + 3 + (i ^ 1) + 3)
            return false;
    return true;
}

void test_locals(void)
{
    struct test_args args = {};
    struct test_launch launch = {mla_kernel_address(sums), 1, 1, 32, 90};
    test_right("locals", &launch, &args, check);
#ifdef MLA_MSAN
    args.wrong = 1;
    test_spoilt("a local that nobody has set", &launch, &args, check);
#endif
}
