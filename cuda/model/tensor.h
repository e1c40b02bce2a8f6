/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor cores, tensor memory and TMA of the functional model: what ptx/{wgmma,tcgen05,tma}.cuh
 * call in place of the instructions. Every function acts for the calling thread. */
#ifndef MLA_MODEL_TENSOR_H
#define MLA_MODEL_TENSOR_H

#include "ptx/at.cuh"
#include "ptx/types.cuh"

struct mla_tensor_map;

/* wgmma.cc */
void model_wgmma_fence(struct model_at at);
void model_wgmma_commit(struct model_at at);
void model_wgmma_wait(int pending, struct model_at at);
void model_wgmma_ss(float *d, int n, operand_type type, u64 a, u64 b, int trans_a, int trans_b,
                    bool accumulate, struct model_at at);
void model_wgmma_rs(float *d, int n, operand_type type, const u32 *a, u64 b, int trans_b,
                    bool accumulate, struct model_at at);

/* tcgen05.cc; shapes by number, in the order of tcgen05.cuh. */
void model_tcgen05_alloc(int group, u32 smem_dst, u32 columns, struct model_at at);
void model_tcgen05_relinquish(int group, struct model_at at);
void model_tcgen05_dealloc(int group, u32 taddr, u32 columns, struct model_at at);
void model_tcgen05_fence_before(struct model_at at);
void model_tcgen05_fence_after(struct model_at at);
void model_tcgen05_wait_ld(struct model_at at);
void model_tcgen05_wait_st(struct model_at at);
void model_tcgen05_ld(int shape, u32 *r, int registers, u32 taddr, struct model_at at);
void model_tcgen05_st(int shape, u32 taddr, const u32 *r, int registers, struct model_at at);
void model_tcgen05_mma(int group, bool kind_f16, bool ws, u32 d, bool a_in_tmem, u64 a, u64 b,
                       u32 idesc, bool accumulate, struct model_at at);
void model_tcgen05_commit(int group, u32 bar, u16 mask, struct model_at at);
void model_tcgen05_cp(int group, int shape, u32 taddr, u64 desc, struct model_at at);

/* tma.cc; mask 0: this CTA alone. */
void model_tma_prefetch_map(const struct mla_tensor_map *map, struct model_at at);
void model_tma_load(u32 dst, const struct mla_tensor_map *map, u32 bar, int rank, const int *c,
                    bool pair, u16 mask, struct model_at at);
void model_tma_gather4(u32 dst, const struct mla_tensor_map *map, u32 bar, int col, const int *rows,
                       bool pair, struct model_at at);
void model_tma_store(const struct mla_tensor_map *map, u32 src, int rank, const int *c,
                     struct model_at at);
void model_bulk_load(u32 dst, const void *gmem, u32 bytes, u32 bar, struct model_at at);
void model_bulk_copy_cluster(u32 dst, u32 src, u32 bytes, u32 bar, struct model_at at);
void model_bulk_store(void *gmem, u32 src, u32 bytes, struct model_at at);
void model_bulk_commit(struct model_at at);
void model_bulk_wait(int pending, bool read, struct model_at at);

#endif
