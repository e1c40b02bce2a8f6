/* SPDX-License-Identifier: Apache-2.0 */
/* Things a whole warp does, and grids that depend on the one before. */
#ifndef MLA_CUDA_PTX_WARP_CUH
#define MLA_CUDA_PTX_WARP_CUH

#include "at.cuh"

/* True in one lane, the same one each time. All 32 lanes call. */
__device__ __forceinline__ bool elect_one(MLA_AT0)
{
#ifdef MLA_MODEL
    return model_elect(at);
#else
    u32 elected;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "elect.sync _|p, 0xFFFFFFFF;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(elected));
    return elected;
#endif
}

/* threadIdx.x / 32, held in a uniform register. All 32 lanes call. */
__device__ __forceinline__ u32 warp_index(MLA_AT0)
{
#ifdef MLA_MODEL
    return model_warp_index(at);
#else
    return __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
#endif
}

/* Registers a thread of this warpgroup from here on: a multiple of 8 from 24 to 256. All four warps
 * call the same; inc waits until others have given registers back. */
template <int N> __device__ __forceinline__ void setmaxnreg_inc(MLA_AT0)
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "a multiple of 8 from 24 to 256");
#ifdef MLA_MODEL
    model_setmaxnreg(N, true, at);
#else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

template <int N> __device__ __forceinline__ void setmaxnreg_dec(MLA_AT0)
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "a multiple of 8 from 24 to 256");
#ifdef MLA_MODEL
    model_setmaxnreg(N, false, at);
#else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

/* Waits until the grids this one depends on have ended and their writes are visible. */
__device__ __forceinline__ void griddep_wait(MLA_AT0)
{
#ifdef MLA_MODEL
    model_griddep_wait(at);
#else
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next grid may start once all blocks have called this or ended. */
__device__ __forceinline__ void griddep_launch_dependents(MLA_AT0)
{
#ifdef MLA_MODEL
    model_griddep_launch_dependents(at);
#else
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
