/* SPDX-License-Identifier: Apache-2.0 */
/* Bugs of mqa.cuh that take more than a line; nothing in ordinary builds. See cuda/mutant.cuh. */
#ifndef MLA_CUDA_ANY_MQA_MUTANT_CUH
#define MLA_CUDA_ANY_MQA_MUTANT_CUH

#include "../mutant.cuh"
#include "mqa_work.cuh"

#ifdef MLA_DEVICE_MUTANTS

/* Entry j of the list as the bugs about lists read it; pos: as it stands there. */
static __device__ int mutated_position(const struct mla_mqa_args &a, const struct work &w, int j,
                                       int pos)
{
    int token = w.r.q_start + w.token0, last = w.count - 1;
    if (token != mutant_token || j >= w.count)
        return pos;
    if (MUTANT(KEY_LOST)) {
        int lost = w.count / 2;
        while (lost < last && (w.list[lost] < 0 || w.list[lost] >= w.end))
            lost++;
        return j == lost ? -1 : pos;
    }
    if (MUTANT(INDEX_CLAMPED))
        return min(max(pos, 0), w.end - 1);
    int counted = a.topk_lens ? max(0, min(a.topk, a.topk_lens[token])) : a.topk;
    if ((MUTANT(PAST_LENGTH) || MUTANT(LENGTH_IGNORED)) && j >= counted)
        return (w.list[j] % w.seq_len + w.seq_len) % w.seq_len; /* a stale row holds some key */
    if (j != last || !(MUTANT(KEY_EXTRA) || MUTANT(KEY_TWICE)))
        return pos;
    if (MUTANT(KEY_TWICE)) {
        for (int e = 31; e < last; e++)
            if (w.list[e] >= 0 && w.list[e] < w.end)
                return w.list[e];
        return -1;
    }
    for (int extra = w.end - 1; extra >= 0; extra--) {
        bool listed = false;
        for (int e = 0; e < last; e++)
            listed |= w.list[e] == extra;
        if (!listed)
            return extra;
    }
    return -1;
}

/* Rounded towards zero from a value that has been rounded towards zero before. */
static __device__ float chopped(float x)
{
    return __uint_as_float(__float_as_uint(x * (1 - 0x1p-9f)) & 0xFFFF0000u);
}

#endif

#endif
