/* SPDX-License-Identifier: Apache-2.0 */
/* Neighbouring query tokens share most of their keys where lists are what attention looks like. A
 * group of tokens of one request gathers the union of their lists once; which token sees a key is a
 * bit of the key's mask. union.cu makes these lists on the device. */
#ifndef MLA_CUDA_ANY_UNION_H
#define MLA_CUDA_ANY_UNION_H

#include "mqa.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mla_job;
struct mla_request;
struct mla_mqa_cut; /* mqa_plan.h */

/* An entry of a union: the position of a key, and from bit MLA_UNION_MASK on a bit for each token
 * of the group that sees it, at least one. Positions are below 2^MLA_UNION_MASK. */
enum {
    MLA_UNION_TOKENS = 8,
    MLA_UNION_MASK = 24,
    MLA_UNION_THREADS = 256,
    MLA_UNION_TALLY_BYTES = 256
};

/* Tokens of a request are grouped from its first one on; its last group may have fewer. Groups have
 * numbers (union.cuh). There is room for the lists of some of them at a time. */
struct mla_mqa_groups {
    int32_t size;         /* tokens of a group, at most MLA_UNION_TOKENS */
    int32_t capacity;     /* entries a group has room for */
    int32_t first, count; /* numbers of the groups whose lists are here */
    uint32_t *entries;    /* [count][capacity] ascending positions */
    int32_t *counts;      /* [all groups] entries; -1: tokens gather for themselves */
    uint32_t *tally;      /* groups so far that count entries, and that count -1; or NULL */
};

struct mla_union_args {
    const struct mla_mqa_request *requests; /* device; those with splits are not grouped */
    int32_t num_requests, causal, topk;
    int32_t words; /* of 32 keys, that shared memory holds at a time */
    int32_t most;  /* longest union, in 256ths of the entries */
    const int32_t *seq_lens_kv, *indices, *topk_lens; /* as in mla_mqa_args */
    int64_t indices_stride;
    struct mla_mqa_groups groups;
};

/* What mqa_any's kernel of groups takes; a block for each of groups.count. */
struct mla_mqa_group_args {
    struct mla_mqa_args a;
    struct mla_mqa_groups groups;
};

/* mqa_group_*.cu: as mla_mqa_tile_*, for rows of a group (token · heads + head). */
struct mla_mqa_tile mla_mqa_group_tile_bf16(int rows, int rope_dim, bool packed);
struct mla_mqa_tile mla_mqa_group_tile_f16(int rows, int rope_dim, bool packed);

/* union.cu: a block a group, MLA_UNION_THREADS threads, size · words · 4 bytes of dynamic
 * shared memory. */
const void *mla_union_function(void);

/* union.c. Is there a request whose tokens are grouped, by the engine's cut? Those whose lists are
 * split have few tokens, and are not. */
bool mla_union_has_groups(const struct mla_job *job,
                          struct mla_mqa_cut (*cut)(const struct mla_job *,
                                                    const struct mla_request *));
/* Bytes of scratch that lists and counts take. */
size_t mla_union_bytes(const mla_problem *problem, int size, int capacity);
/* The last MLA_UNION_TALLY_BYTES of them: for a tally, which an engine that wants one sets to 0. */
uint32_t *mla_union_tally(const mla_problem *problem, int size, int capacity, char *scratch);
/* Permission for the kernel's shared memory, once a device. */
mla_status mla_union_prepare(void);

/* Attention of the groups whose lists are here. */
typedef mla_status mla_union_attend(const struct mla_job *job, const struct mla_mqa_args *args,
                                    const struct mla_mqa_groups *groups, void *stream);

/* Lists of as many groups of a launch's requests as args->scratch has room for, then their
 * attention, until all are done; args then say what single tokens leave alone. most: as in
 * mla_union_args. tally: as in mla_mqa_groups. */
mla_status mla_union_run(const struct mla_job *job, struct mla_mqa_args *args, int size,
                         int capacity, int most, uint32_t *tally, mla_union_attend *attend,
                         void *stream);

#ifdef __cplusplus
}
#endif
#endif
