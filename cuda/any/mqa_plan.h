/* SPDX-License-Identifier: Apache-2.0 */
/* Host side of absorbed-form attention: what a kernel row, of absorbed or latent problems, calls.
 * An engine is what differs from one architecture's kernels to another's; request tables, splits,
 * combine and projections are the same for all. A row names its engine; each engine has two rows.
 *
 *   prepare: mla_mqa_prepare cuts the requests into tiles and key splits as the engine says, puts
 *            the request table on the device; mla_mqa_part_bytes of the workspace hold partial
 *            results
 *   run:     mla_mqa_launch, with q and out wherever they lie (a latent row passes its absorbed q
 *            and latent output); launches only
 *   release: mla_mqa_release */
#ifndef MLA_CUDA_ANY_MQA_PLAN_H
#define MLA_CUDA_ANY_MQA_PLAN_H

#include "kernel.h"
#include "mqa.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mla_mqa_plan;

enum { MLA_MQA_TILES = 4 };

/* A request as an engine cuts it: row tiles times key splits, each a block (or cluster). */
struct mla_mqa_cut {
    int tile;      /* which of the engine's tiles */
    int64_t tiles; /* 0 = nothing to compute */
    int64_t splits;
};

/* Requests of one tile, which are launched together. */
struct mla_mqa_launch {
    int first, count; /* requests in the table */
    int tile;
    int64_t blocks; /* tiles times splits: blocks, or clusters where the tile has them */
    int64_t merged_rows;
    struct mla_mqa_request only; /* the request, where it is one alone */
};

struct mla_mqa_engine {
    const char *name;   /* for sentences */
    int num_tiles;      /* at most MLA_MQA_TILES */
    size_t most_shared; /* bytes of shared memory of a block; 0 = what the device has */
    bool fills;         /* are its splits chosen by the batch where nobody says? */
    /* Beyond what mla_mqa_supports has checked for all: the device, the cache, lists. If not,
     * writes why as a clause. */
    bool (*supports)(const struct mla_job *job, char *why, size_t bytes);
    struct mla_mqa_cut (*cut)(const struct mla_job *job, const struct mla_request *request);
    struct mla_mqa_tile (*tile)(const mla_problem *problem, int tile);
    /* Workspace of the engine's own, args->scratch of launch; NULL: none. Called once a plan. */
    mla_status (*scratch)(const struct mla_job *job, size_t *bytes);
    /* Launches one tile's requests: args holds everything, the requests too. NULL: a grid of
     * `blocks` clusters whose kernel takes args alone. The context's device is current. */
    mla_status (*launch)(const struct mla_job *job, const struct mla_mqa_tile *tile,
                         const struct mla_mqa_args *args, const struct mla_mqa_launch *launch,
                         void *stream);
};

/* The fields of a row beside name, architecture, proof, formats and engine. */
#define MLA_MQA_ABSORBED_ROW                                                                       \
    .backend = MLA_BACKEND_CUDA,                                                                   \
    .routes = MLA_BIT(MLA_ROUTE_SPARSE_MQA) | MLA_BIT(MLA_ROUTE_DENSE_MQA),                        \
    .forms = MLA_BIT(MLA_FORM_ABSORBED), .supports = mla_mqa_supports,                             \
    .prepare = mla_mqa_row_prepare, .release = mla_mqa_row_release, .run = mla_mqa_row_run
#define MLA_MQA_LATENT_ROW                                                                         \
    .backend = MLA_BACKEND_CUDA,                                                                   \
    .routes = MLA_BIT(MLA_ROUTE_SPARSE_MQA) | MLA_BIT(MLA_ROUTE_DENSE_MQA),                        \
    .forms = MLA_BIT(MLA_FORM_LATENT), .supports = mla_mqa_latent_supports,                        \
    .prepare = mla_mqa_latent_prepare, .release = mla_mqa_latent_release,                          \
    .run = mla_mqa_latent_run

/* mqa.c */
mla_status mla_mqa_row_prepare(struct mla_job *job);
void mla_mqa_row_release(struct mla_job *job);
mla_status mla_mqa_row_run(const struct mla_job *job, const mla_tensors *tensors, void *workspace,
                           void *stream);
/* latent_mqa.c */
bool mla_mqa_latent_supports(const struct mla_job *job, char *why, size_t bytes);
mla_status mla_mqa_latent_prepare(struct mla_job *job);
void mla_mqa_latent_release(struct mla_job *job);
mla_status mla_mqa_latent_run(const struct mla_job *job, const mla_tensors *tensors,
                              void *workspace, void *stream);

/* For engines. Are keys those of the lists? */
static inline bool mla_mqa_uses_lists(const struct mla_job *job)
{
    return job->problem->topk > 0 && !job->ignore_lists;
}
/* Keys of a request, listed or all. */
static inline int64_t mla_mqa_keys(const struct mla_job *job, const struct mla_request *r)
{
    return mla_mqa_uses_lists(job) ? job->problem->topk : r->seq_len_kv;
}
/* Splits of a request's keys: those wanted, or (none wanted, MLA_SPLITS_ALONE) as many as `room`
 * tiles at a time leave free, none of fewer than `least` keys, at most 64; never more than it has steps, nor fewer
 * than 1. */
static inline int64_t mla_mqa_choose_splits(int64_t wanted, int64_t room, int64_t keys,
                                            int64_t least, int64_t steps)
{
    int64_t most = keys / least, splits = wanted;
    if (splits <= 0) {
        splits = most < room ? most : room;
        splits = splits < 64 ? splits : 64;
    }
    splits = splits < steps ? splits : steps;
    return splits < 1 ? 1 : splits;
}
/* A grid of launch->blocks clusters of the tile. argument: the kernel's one parameter. */
mla_status mla_mqa_launch_grid(const struct mla_mqa_tile *tile, void *argument, int64_t blocks,
                               void *stream);

/* mqa_any's own: how it cuts a request, and its tiles. */
enum { MLA_MQA_ANY_TILES = 3 };
struct mla_mqa_cut mla_mqa_any_cut(const struct mla_job *job, const struct mla_request *request);
struct mla_mqa_tile mla_mqa_any_tile(const mla_problem *problem, int tile);

/* Can the engine of the job's row take the job's dims, types and cache? If not, why. Form is not
 * looked at. */
bool mla_mqa_supports(const struct mla_job *job, char *why, size_t bytes);
mla_status mla_mqa_prepare(const struct mla_job *job, struct mla_mqa_plan **out);
void mla_mqa_release(struct mla_mqa_plan *plan);
size_t mla_mqa_part_bytes(const struct mla_mqa_plan *plan);
/* Largest number of key splits of a request. */
int64_t mla_mqa_splits(const struct mla_mqa_plan *plan);

/* q [T, H, 512 + rope] of the problem's q_dtype and out [T, H, 512] of out_dtype, T rows of the
 * whole batch; strides 0 = packed. parts: mla_mqa_part_bytes, 256-byte aligned. The context's
 * device is current. */
mla_status mla_mqa_launch(const struct mla_job *job, const struct mla_mqa_plan *plan,
                          const mla_tensors *tensors, const mla_tensor *q, const mla_tensor *out,
                          mla_dtype out_dtype, void *parts, void *stream);

#ifdef __cplusplus
}
#endif
#endif
