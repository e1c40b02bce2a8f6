/* SPDX-License-Identifier: Apache-2.0 */
/* Who arrives at an mbarrier for a warp: one lane, behind __syncwarp. racecheck follows the order
 * that an arrival makes for the arriving lane alone, so a build for it (-DMLA_RACECHECK=ON) lets
 * every lane arrive, once it has come to the same place, and counts each warp as 32. Counts are
 * multiples of LANES_THAT_ARRIVE; nothing else differs. */
#ifndef MLA_CUDA_ARRIVE_CUH
#define MLA_CUDA_ARRIVE_CUH

#include "ptx/barrier.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/warp.cuh"

#ifdef MLA_RACECHECK
static const u32 LANES_THAT_ARRIVE = 32;
#else
static const u32 LANES_THAT_ARRIVE = 1;
#endif

/* Does this lane arrive, where a warp does nothing but arrive? All lanes call. */
__device__ __forceinline__ bool arrives()
{
    return LANES_THAT_ARRIVE == 32 || elect_one();
}

/* The same, in lane 0 where it is one. The condition stays one of run time: with an arrival that
 * nothing guards, ptxas 13.0 drops a part of a sum of index_tile.cu. */
__device__ __forceinline__ bool lane_arrives()
{
    return threadIdx.x % 32 < (LANES_THAT_ARRIVE == 32 ? blockDim.x : 1);
}

/* Behind an arrival of the lane that elect_one picks: those of the others, if they arrive. */
__device__ __forceinline__ void others_arrive(u32 bar)
{
    if (LANES_THAT_ARRIVE == 32) {
        if (!elect_one())
            mbarrier_arrive(bar);
        __syncwarp();
    }
}

/* bar_sync, twice in the build for racecheck: the tool loses the order of a single one of two
 * warpgroups now and then, as the time falls. */
__device__ __forceinline__ void sync_warps(int id, int threads)
{
    bar_sync(id, threads);
    if (LANES_THAT_ARRIVE == 32)
        bar_sync(id, threads);
}

/* One arrival a warp: all its lanes have come here. */
__device__ __forceinline__ void release(u32 bar)
{
    __syncwarp();
    if (arrives())
        mbarrier_arrive(bar);
    __syncwarp();
}

#endif
