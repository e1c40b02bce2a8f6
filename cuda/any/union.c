/* SPDX-License-Identifier: Apache-2.0 */
/* Unions of top-k lists, host side: room for them and the launch of union.cu. */
#include "union.h"

#include "mqa_plan.h"

#include "../device.h"
#include "status.h"

/* Keys whose bits shared memory holds at a time, for all tokens of a group together. */
enum { BITS_BYTES = 32 << 10 };
/* Entries of all lists that are in memory at a time: 4 bytes each. */
static const int64_t MOST_ENTRIES = (int64_t)32 << 20;

static size_t aligned(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

/* Numbers of groups end below this. */
static int64_t numbers(const mla_problem *p, int size)
{
    return mla_total_q(p) / size + p->batch;
}

/* Groups whose lists are in memory at a time. */
static int64_t groups_at_a_time(const mla_problem *p, int size, int capacity)
{
    int64_t all = numbers(p, size), most = MOST_ENTRIES / (capacity < 1 ? 1 : capacity);
    return all < most ? all : most;
}

size_t mla_union_bytes(const mla_problem *p, int size, int capacity)
{
    size_t entries = (size_t)groups_at_a_time(p, size, capacity) * (size_t)capacity;
    return aligned(entries * 4) + aligned((size_t)numbers(p, size) * 4) + MLA_UNION_TALLY_BYTES;
}

uint32_t *mla_union_tally(const mla_problem *p, int size, int capacity, char *scratch)
{
    size_t bytes = mla_union_bytes(p, size, capacity);
    return (uint32_t *)(scratch + bytes - MLA_UNION_TALLY_BYTES);
}

/* Their places in that many bytes, 256-byte aligned. */
static struct mla_mqa_groups groups_of(const mla_problem *p, int size, int capacity, char *bytes)
{
    int64_t groups = groups_at_a_time(p, size, capacity);
    size_t entries = (size_t)groups * (size_t)capacity;
    struct mla_mqa_groups g = {.size = size, .capacity = capacity, .count = (int32_t)groups};
    g.entries = (uint32_t *)bytes;
    g.counts = (int32_t *)(bytes + aligned(entries * 4));
    return g;
}

mla_status mla_union_prepare(void)
{
    return mla_cuda_allow_shared(mla_union_function(), BITS_BYTES, MLA_ANY_SHARED_BYTES);
}

/* Makes the lists of g->count groups. */
static mla_status launch_unions(const mla_problem *p, const struct mla_mqa_args *a,
                                const struct mla_mqa_groups *g, int most, void *stream)
{
    int64_t longest = 1, room = BITS_BYTES / 4 / g->size;
    for (int64_t b = 0; b < p->batch; b++)
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    int64_t words = (longest + 31) / 32;
    struct mla_union_args args = {
        .requests = a->requests,
        .num_requests = a->num_requests,
        .causal = a->causal,
        .topk = a->topk,
        .words = (int32_t)(words < room ? words : room),
        .most = most,
        .seq_lens_kv = a->seq_lens_kv,
        .indices = a->indices,
        .topk_lens = a->topk_lens,
        .indices_stride = a->indices_stride,
        .groups = *g,
    };
    void *pointers[] = {&args};
    size_t shared = (size_t)g->size * (size_t)args.words * 4;
    MLA_CUDA(cudaLaunchKernel(mla_union_function(), (dim3){(unsigned)g->count, 1, 1},
                              (dim3){MLA_UNION_THREADS, 1, 1}, pointers, shared, stream));
    return MLA_OK;
}

bool mla_union_has_groups(const struct mla_job *job,
                          struct mla_mqa_cut (*cut)(const struct mla_job *,
                                                    const struct mla_request *))
{
    for (int64_t i = 0; i < job->num_requests; i++)
        if (job->requests[i].query_len > 1 && cut(job, &job->requests[i]).splits == 1)
            return true;
    return false;
}

mla_status mla_union_run(const struct mla_job *job, struct mla_mqa_args *args, int size,
                         int capacity, int most, uint32_t *tally, mla_union_attend *attend,
                         void *stream)
{
    const mla_problem *p = job->problem;
    struct mla_mqa_groups g = groups_of(p, size, capacity, args->scratch);
    int64_t all = numbers(p, size), here = g.count;
    g.tally = tally;
    for (; g.first < all; g.first += (int32_t)here) {
        g.count = (int32_t)(all - g.first < here ? all - g.first : here);
        mla_status status = launch_unions(p, args, &g, most, stream);
        if (status == MLA_OK)
            status = attend(job, args, &g, stream);
        if (status != MLA_OK)
            return status;
    }
    args->group_counts = g.counts;
    args->group_size = g.size;
    return MLA_OK;
}
