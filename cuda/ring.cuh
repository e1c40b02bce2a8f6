/* SPDX-License-Identifier: Apache-2.0 */
/* Where a role stands in a pipeline of N stages with a full and a free barrier each. Consumers wait
 * for full at `phase`, producers for free at `phase ^ 1`: a fresh barrier lets the first round of
 * producers pass. */
#ifndef MLA_CUDA_RING_CUH
#define MLA_CUDA_RING_CUH

#include "ptx/at.cuh"

template <int STAGES> struct ring {
    u32 stage = 0, phase = 0;

    __device__ __forceinline__ void next()
    {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
    /* By any number of stages. */
    __device__ __forceinline__ void skip(u32 count)
    {
        stage += count;
        phase ^= stage / STAGES & 1;
        stage %= STAGES;
    }
};

#endif
