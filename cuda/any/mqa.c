/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed-form attention, host side: what all engines share (request table, launches, combine),
 * and the engine and rows of any GPU from sm_80: which tile a request gets, how its keys are split.
 * Device side: mqa.cuh, combine.cu. */
#include "mqa.h"

#include "../device.h"
#include "format.h"
#include "mqa_plan.h"
#include "record.h"
#include "status.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static const double ln2 = 0.69314718055994530942;

struct mla_mqa_plan {
    const struct mla_mqa_engine *engine;
    struct mla_mqa_launch launches[MLA_MQA_TILES];
    int num_launches;
    int64_t part_rows, most_splits;
    size_t scratch_bytes;
    struct mla_mqa_request *table; /* device */
    int device;
};

static const struct mla_mqa_engine *engine_of(const struct mla_job *job)
{
    return job->kernel->engine;
}

/* ---------------------------------------------------------------- supports */

bool mla_mqa_supports(const struct mla_job *job, char *why, size_t bytes)
{
    const mla_problem *p = job->problem;
    bool packed = mla_cache_is_packed(p->cache_format);
    if (p->kv_lora_rank != MLA_MQA_LATENT)
        snprintf(why, bytes, "kv_lora_rank %" PRId64 ", want %d", p->kv_lora_rank, MLA_MQA_LATENT);
    else if (p->qk_rope_dim != 0 && p->qk_rope_dim != PACKED_ROPE)
        snprintf(why, bytes, "qk_rope_dim %" PRId64 ", want 0 or %d", p->qk_rope_dim, PACKED_ROPE);
    else if (p->q_dtype != MLA_BF16 && p->q_dtype != MLA_F16)
        snprintf(why, bytes, "q of %s, want bf16 or f16", mla_dtype_name(p->q_dtype));
    else if (p->out_dtype == MLA_F64)
        snprintf(why, bytes, "out of f64, want bf16, f16 or f32");
    else if (!packed && mla_cache_dtype(p->cache_format) != p->q_dtype)
        snprintf(why, bytes, "a %s cache under q of %s, want one type",
                 mla_cache_format_name(p->cache_format), mla_dtype_name(p->q_dtype));
    else if (p->page_size > 0 && p->num_pages > INT32_MAX / p->page_size)
        snprintf(why, bytes, "%" PRId64 " pages of %" PRId64 " keys, want fewer than 2^31 slots",
                 p->num_pages, p->page_size);
    else if (p->max_pages > INT32_MAX || p->topk > INT32_MAX - MLA_MQA_KEYS)
        snprintf(why, bytes, "max_pages %" PRId64 ", topk %" PRId64 ", want less than 2^31",
                 p->max_pages, p->topk);
    else {
        for (int64_t i = 0; i < job->num_requests; i++) {
            const struct mla_request *r = &job->requests[i];
            if (r->query_len * p->heads_q > INT32_MAX - 64 || r->kv_start > INT32_MAX ||
                r->seq_len_kv > INT32_MAX - 4 * MLA_MQA_KEYS) {
                snprintf(why, bytes,
                         "request %" PRId64 " with query_len times heads %" PRId64
                         " from key %" PRId64 ", want less than 2^31",
                         r->index, r->query_len * p->heads_q, r->kv_start);
                return false;
            }
        }
        return engine_of(job)->supports(job, why, bytes);
    }
    return false;
}

/* ----------------------------------------------------------------- prepare */

static mla_status count_sms(int device, int *sms)
{
    MLA_CUDA(cudaDeviceGetAttribute(sms, cudaDevAttrMultiProcessorCount, device));
    return MLA_OK;
}

/* Key splits that fill the device with these requests: works of how many keys? Costs are in keys of
 * a work, some 30 ns each on an H100 (docs/performance.md). A round of works takes as long as its
 * keys, or as memory takes for all of them (a quarter of the lesser shows), and some more to begin
 * and end; the merge once that, and a part of a row is 4 KB that are written and read again. */
static int64_t length_that_fills(const struct mla_job *job, const struct mla_mqa_engine *engine,
                                 int64_t sms)
{
    const int64_t begin = 128, merge = 256, rows_a_key = 28, bytes_a_key = 84096, most_parts = 256;
    const mla_problem *p = job->problem;
    const bool lists = mla_mqa_uses_lists(job);
    const int64_t row =
        (int64_t)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    int64_t best = INT64_MAX, least = INT64_MAX, longest = 0, read = 0;
    struct mla_job one = *job;
    one.wanted_splits = 1;
    for (int64_t i = 0; i < job->num_requests; i++) {
        const struct mla_request *r = &job->requests[i];
        const int64_t keys = mla_mqa_keys(job, r);
        longest = keys > longest ? keys : longest;
        read += keys * (lists ? r->query_len : 1);
    }
    read = read * row / bytes_a_key;
    for (int64_t most = 1; most <= most_parts; most += most / 16 + 1) {
        const int64_t length = (longest / most + 63) / 64 * 64;
        int64_t works = 0, part_rows = 0;
        if (length == 0)
            break;
        for (int64_t i = 0; i < job->num_requests; i++) {
            const struct mla_request *r = &job->requests[i];
            const struct mla_mqa_cut c = engine->cut(&one, r);
            const int64_t keys = mla_mqa_keys(job, r), parts = (keys + length - 1) / length;
            const int64_t blocks = engine->tile(p, c.tile).cluster;
            works += c.tiles * (parts < 1 ? 1 : parts) * (blocks < 1 ? 1 : blocks);
            part_rows += c.tiles && parts > 1 ? r->query_len * p->heads_q * parts : 0;
        }
        const int64_t rounds = (works + sms - 1) / sms, all = rounds * length;
        const int64_t cost = (all > read ? all + read / 4 : read + all / 4) + rounds * begin +
                             (part_rows ? merge + part_rows / rows_a_key : 0);
        if (cost < least) {
            least = cost;
            best = length;
        }
        if (length == 64)
            break;
    }
    return best;
}

/* How the engine cuts a request; fill: keys of a split, 0 = as the engine or the caller says. */
static struct mla_mqa_cut cut_of(const struct mla_job *job, const struct mla_mqa_engine *engine,
                                 const struct mla_request *r, int64_t fill)
{
    struct mla_job one = *job;
    if (fill) {
        const int64_t keys = mla_mqa_keys(job, r);
        one.wanted_splits = keys <= fill ? 1 : (keys + fill - 1) / fill;
    }
    return engine->cut(&one, r);
}

/* Appends the requests of one tile to the table. */
static mla_status add_launch(const struct mla_job *job, int tile, int64_t fill,
                             struct mla_mqa_plan *plan, struct mla_mqa_request *table, int *used)
{
    const mla_problem *p = job->problem;
    struct mla_mqa_launch l = {.first = *used, .tile = tile};
    for (int64_t i = 0; i < job->num_requests; i++) {
        const struct mla_request *r = &job->requests[i];
        struct mla_mqa_cut cut = cut_of(job, plan->engine, r, fill);
        if (cut.tiles == 0 || cut.tile != tile)
            continue;
        int64_t all = r->query_len * p->heads_q;
        table[(*used)++] = (struct mla_mqa_request){
            .index = (int32_t)r->index,
            .q_start = (int32_t)r->q_start,
            .query_len = (int32_t)r->query_len,
            .kv_start = (int32_t)r->kv_start,
            .seq_len_kv = (int32_t)r->seq_len_kv,
            .splits = (int32_t)cut.splits,
            .first_block = (int32_t)l.blocks,
            .first_row = (int32_t)l.merged_rows,
            .part_row = plan->part_rows,
        };
        l.count++;
        l.blocks += cut.tiles * cut.splits;
        if (cut.splits > 1) {
            l.merged_rows += all;
            plan->part_rows += all * cut.splits;
        }
        plan->most_splits = cut.splits > plan->most_splits ? cut.splits : plan->most_splits;
        if (l.blocks > INT32_MAX || l.merged_rows > INT32_MAX)
            return mla_fail(MLA_ERR_UNSUPPORTED,
                            "mla_plan_create: %s: %" PRId64 " blocks and %" PRId64
                            " rows of split requests, want fewer than 2^31",
                            plan->engine->name, l.blocks, l.merged_rows);
    }
    if (l.count == 1)
        l.only = table[l.first];
    if (l.count)
        plan->launches[plan->num_launches++] = l;
    return MLA_OK;
}

/* Table to the device, and permission for the tiles' shared memory, which CUDA asks for once a
 * function and device. */
static mla_status upload(const struct mla_job *job, struct mla_mqa_plan *plan,
                         const struct mla_mqa_request *table, int used)
{
    const mla_problem *p = job->problem;
    size_t bytes = (size_t)used * sizeof *table;
    if (used == 0)
        return MLA_OK;
    for (int i = 0; i < plan->num_launches; i++) {
        struct mla_mqa_tile tile = plan->engine->tile(p, plan->launches[i].tile);
        mla_status status =
            mla_cuda_allow_shared(tile.function, tile.shared_bytes, plan->engine->most_shared);
        if (status != MLA_OK)
            return status;
    }
    MLA_CUDA(cudaMalloc((void **)&plan->table, bytes));
    MLA_CUDA(mla_cuda_upload(plan->table, table, bytes));
    return MLA_OK;
}

mla_status mla_mqa_prepare(const struct mla_job *job, struct mla_mqa_plan **out)
{
    *out = NULL;
    struct mla_mqa_plan *plan = mla_alloc(1, sizeof *plan);
    struct mla_mqa_request *table = mla_alloc((size_t)job->num_requests, sizeof *table);
    int used = 0, before = 0;
    mla_status status = MLA_OK;
    if (!plan || !table) {
        mla_free(plan);
        mla_free(table);
        return mla_fail(MLA_ERR_MEMORY,
                        "mla_plan_create: cannot allocate a table of %" PRId64 " requests",
                        job->num_requests);
    }
    plan->engine = engine_of(job);
    plan->most_splits = 1;
    plan->device = job->context->device;
    int64_t fill = 0;
    if (job->wanted_splits == 0 && plan->engine->fills) {
        int sms = 0;
        status = mla_cuda_enter(job->context, &before);
        if (status == MLA_OK) {
            status = count_sms(plan->device, &sms);
            mla_cuda_leave(job->context, before);
        }
        if (status == MLA_OK)
            fill = length_that_fills(job, plan->engine, sms);
    }
    for (int tile = 0; status == MLA_OK && tile < plan->engine->num_tiles; tile++)
        status = add_launch(job, tile, fill, plan, table, &used);
    if (status == MLA_OK)
        status = mla_cuda_enter(job->context, &before);
    if (status == MLA_OK) {
        status = upload(job, plan, table, used);
        if (status == MLA_OK && plan->engine->scratch)
            status = plan->engine->scratch(job, &plan->scratch_bytes);
        mla_cuda_leave(job->context, before);
    }
    mla_free(table);
    if (status != MLA_OK) {
        mla_mqa_release(plan);
        return status;
    }
    *out = plan;
    return MLA_OK;
}

void mla_mqa_release(struct mla_mqa_plan *plan)
{
    if (!plan)
        return;
    cudaFree(plan->table); /* by address: any current device will do */
    mla_free(plan);
}

static size_t aligned(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

size_t mla_mqa_part_bytes(const struct mla_mqa_plan *plan)
{
    size_t rows = (size_t)plan->part_rows;
    return aligned(rows * MLA_MQA_LATENT * 4) + 2 * aligned(rows * 4) + plan->scratch_bytes;
}

int64_t mla_mqa_splits(const struct mla_mqa_plan *plan)
{
    return plan->most_splits;
}

/* ------------------------------------------------------------------ launch */

/* The largest of 16, 8, 4, 1 that divides every byte offset given. */
static int common_align(const void *base, int64_t a, int64_t b, int64_t c)
{
    uint64_t all = (uint64_t)(uintptr_t)base | (uint64_t)a | (uint64_t)b | (uint64_t)c;
    return all % 16 == 0 ? 16 : all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : 1;
}

/* Division by page_size as a multiplication (Granlund and Montgomery 1994). */
static void set_page_division(struct mla_mqa_cache *c)
{
    while ((int64_t)1 << c->page_shift < c->page_size)
        c->page_shift++;
    c->page_magic = (uint32_t)(((uint64_t)1 << (31 + c->page_shift)) / (uint64_t)c->page_size + 1);
}

static struct mla_mqa_cache cache_of(const mla_problem *p, const mla_tensors *t)
{
    bool packed = mla_cache_is_packed(p->cache_format);
    int64_t row = (int64_t)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    int64_t item = packed ? 1 : (int64_t)mla_dtype_bytes(mla_cache_dtype(p->cache_format));
    struct mla_mqa_cache c = {.format = p->cache_format, .page_size = (int32_t)p->page_size};
    if (p->page_size == 0) {
        c.data = t->kv_c.data;
        c.rope = t->k_pe.data;
        c.row_bytes = mla_stride0(&t->kv_c, p->kv_lora_rank) * item;
        c.rope_row_bytes = mla_stride0(&t->k_pe, p->qk_rope_dim) * item;
        c.align = common_align(c.data, c.row_bytes, 0, 0);
        int rope = common_align(c.rope, c.rope_row_bytes, 0, 0);
        if (p->qk_rope_dim && rope < c.align)
            c.align = rope;
        return c;
    }
    set_page_division(&c);
    c.data = t->kv_cache.data;
    c.rope = c.data + MLA_MQA_LATENT * item;
    c.row_bytes = mla_stride1(&t->kv_cache, row / item) * item;
    c.record_bytes = (int32_t)row;
    if (p->cache_format == MLA_CACHE_MODEL1) {
        c.record_bytes = MODEL1_DATA_BYTES;
        c.footer_bytes = MODEL1_SCALE_BYTES;
    } else if (p->cache_format == MLA_CACHE_V41) {
        c.record_bytes = V41_DATA_BYTES;
        c.footer_bytes = V41_SCALE_BYTES;
    }
    /* Pages with a footer have no row stride: their parts lie where page_size puts them. */
    c.page_bytes = mla_stride0(&t->kv_cache, 0) * item;
    if (c.page_bytes == 0)
        c.page_bytes = p->page_size * (c.footer_bytes ? row : c.row_bytes);
    if (c.footer_bytes)
        c.row_bytes = c.record_bytes;
    c.page_table = t->page_table.data;
    c.page_table_stride = mla_stride0(&t->page_table, p->max_pages);
    c.num_pages = (int32_t)p->num_pages;
    c.max_pages = (int32_t)p->max_pages;
    c.align = common_align(c.data, c.row_bytes, c.page_bytes, 0);
    return c;
}

static int64_t mask_words(const mla_problem *p)
{
    int64_t most = 0;
    for (int64_t b = 0; b < p->batch; b++)
        most = p->seq_lens_kv[b] > most ? p->seq_lens_kv[b] : most;
    return (most + 31) / 32;
}

static struct mla_mqa_args args_of(const struct mla_job *job, const struct mla_mqa_plan *plan,
                                   const mla_tensors *t, const mla_tensor *q, const mla_tensor *out,
                                   mla_dtype out_dtype, char *parts)
{
    const mla_problem *p = job->problem;
    int64_t d = p->kv_lora_rank + p->qk_rope_dim, item = (int64_t)mla_dtype_bytes(p->q_dtype);
    int64_t q_head = mla_stride1(q, d), out_head = mla_stride1(out, MLA_MQA_LATENT);
    size_t rows = (size_t)plan->part_rows;
    struct mla_mqa_args a = {
        .heads = (int32_t)p->heads_q,
        .topk = mla_mqa_uses_lists(job) ? (int32_t)p->topk : 0,
        .causal = p->causal,
        .q = q->data,
        .q_stride = {mla_stride0(q, p->heads_q * q_head) * item, q_head * item},
        .out_dtype = out_dtype,
        .cache = cache_of(p, t),
        .seq_lens_kv = t->seq_lens_kv,
        .scale_log2 = (float)(p->softmax_scale / ln2),
        .lse_unit = p->lse_base == MLA_LSE_2 ? 1 : (float)ln2,
        .out = out->data,
        .out_stride = {mla_stride0(out, p->heads_q * out_head), out_head},
        .sink = p->has_sink ? t->attn_sink : NULL,
    };
    a.q_align = common_align(q->data, a.q_stride[0], a.q_stride[1], 0);
    if (p->has_mask) {
        a.mask = t->mask.data;
        a.mask_stride = mla_stride0(&t->mask, mask_words(p));
    }
    if (a.topk) {
        a.indices = t->topk_indices.data;
        a.indices_stride = mla_stride0(&t->topk_indices, p->topk);
        a.topk_lens = p->has_topk_lens ? t->topk_lens : NULL;
    }
    if (p->wants_lse) {
        a.lse = t->lse.data;
        a.lse_stride[0] = mla_stride0(&t->lse, p->heads_q);
        a.lse_stride[1] = mla_stride1(&t->lse, 1);
    }
    if (p->wants_max_logits) {
        a.max_logits = t->max_logits.data;
        a.max_stride[0] = mla_stride0(&t->max_logits, p->heads_q);
        a.max_stride[1] = mla_stride1(&t->max_logits, 1);
    }
    a.part_out = (float *)parts;
    a.part_lse = (float *)(parts + aligned(rows * MLA_MQA_LATENT * 4));
    a.part_max = (float *)(parts + aligned(rows * MLA_MQA_LATENT * 4) + aligned(rows * 4));
    a.scratch = parts + aligned(rows * MLA_MQA_LATENT * 4) + 2 * aligned(rows * 4);
    return a;
}

mla_status mla_mqa_launch_grid(const struct mla_mqa_tile *tile, void *argument, int64_t blocks,
                               void *stream)
{
    const unsigned cluster = (unsigned)tile->cluster;
    cudaLaunchAttribute attribute = {.id = cudaLaunchAttributeClusterDimension};
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    const cudaLaunchConfig_t config = {
        .gridDim = {(unsigned)blocks * cluster, 1, 1},
        .blockDim = {(unsigned)tile->threads, 1, 1},
        .dynamicSmemBytes = tile->shared_bytes,
        .stream = stream,
        .attrs = &attribute,
        .numAttrs = cluster > 1,
    };
    void *args[] = {argument};
    MLA_CUDA(cudaLaunchKernelExC(&config, tile->function, args));
    return MLA_OK;
}

/* From sm_90 on the grid may start while the one before it is ending; it waits for its results. */
static mla_status launch_combine(const struct mla_job *job, struct mla_mqa_args *a, int64_t rows,
                                 int64_t most_splits, void *stream)
{
    const int groups = most_splits > 8 ? MLA_MQA_COMBINE_GROUPS : 1;
    const int64_t warps = MLA_MQA_THREADS / 32, all = rows * MLA_MQA_COMBINE_WARPS * groups;
    cudaLaunchAttribute attribute = {.id = cudaLaunchAttributeProgrammaticStreamSerialization};
    attribute.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config = {
        .gridDim = {(unsigned)((all + warps - 1) / warps), 1, 1},
        .blockDim = {MLA_MQA_THREADS, 1, 1},
        .stream = stream,
        .attrs = &attribute,
        .numAttrs = job->context->sm >= 90,
    };
    void *args[] = {a, &rows};
    MLA_CUDA(cudaLaunchKernelExC(&config, mla_mqa_combine_function(groups), args));
    return MLA_OK;
}

mla_status mla_mqa_launch(const struct mla_job *job, const struct mla_mqa_plan *plan,
                          const mla_tensors *t, const mla_tensor *q, const mla_tensor *out,
                          mla_dtype out_dtype, void *parts, void *stream)
{
    struct mla_mqa_args a = args_of(job, plan, t, q, out, out_dtype, parts);
    mla_status status = MLA_OK;
    for (int i = 0; status == MLA_OK && i < plan->num_launches; i++) {
        const struct mla_mqa_launch *l = &plan->launches[i];
        struct mla_mqa_tile tile = plan->engine->tile(job->problem, l->tile);
        a.requests = plan->table + l->first;
        a.num_requests = l->count;
        if (plan->engine->launch)
            status = plan->engine->launch(job, &tile, &a, l, stream);
        else
            status = mla_mqa_launch_grid(&tile, &a, l->blocks, stream);
        if (status == MLA_OK && l->merged_rows)
            status = launch_combine(job, &a, l->merged_rows, plan->most_splits, stream);
    }
    return status;
}

/* --------------------------------------------------------------------- rows */

mla_status mla_mqa_row_prepare(struct mla_job *job)
{
    struct mla_mqa_plan *plan;
    mla_status status = mla_mqa_prepare(job, &plan);
    if (status != MLA_OK)
        return status;
    job->data = plan;
    job->num_splits = mla_mqa_splits(plan);
    job->workspace_bytes = mla_mqa_part_bytes(plan);
    return MLA_OK;
}

void mla_mqa_row_release(struct mla_job *job)
{
    mla_mqa_release(job->data);
    job->data = NULL;
}

mla_status mla_mqa_row_run(const struct mla_job *job, const mla_tensors *tensors, void *workspace,
                           void *stream)
{
    int before;
    mla_status status = mla_cuda_enter(job->context, &before);
    if (status != MLA_OK)
        return status;
    status = mla_mqa_launch(job, job->data, tensors, &tensors->q, &tensors->out,
                            job->problem->out_dtype, workspace, stream);
    mla_cuda_leave(job->context, before);
    return status;
}

/* ----------------------------------------------------------------- mqa_any */

enum {
    TILES = MLA_MQA_ANY_TILES,
    /* A request with this many row tiles fills a GPU without splitting its keys. */
    ENOUGH_TILES = 128,
    MOST_SPLITS = 64
};
static const int tile_rows[TILES] = {16, 32, 64};

/* Keys below which a split costs more than it gains: a partial row is written and read again, 4 KB,
 * against 1152 bytes a key that the whole tile shares. */
static const int64_t least_keys[TILES] = {1024, 2048, 4096};

static bool any_supports(const struct mla_job *job, char *why, size_t bytes)
{
    (void)job, (void)why, (void)bytes;
    return true;
}

static int tile_of(int64_t rows)
{
    return rows <= 16 ? 0 : rows <= 32 ? 1 : 2;
}

/* Times of a tile over a list, on an H100, relative to each other (docs/performance.md: 16, 32 and
 * 64 heads): a tile takes as long for one row as for all. */
static const int list_cost[TILES] = {181, 281, 474};

/* Heads that fill no tile of 64 rows may take less time in smaller ones: 80 and 96 in
 * three of 32. Packed caches are widened by each tile again, so they stay with few. */
static int tile_of_list(const mla_problem *p)
{
    int best = tile_of(p->heads_q);
    if (mla_cache_is_packed(p->cache_format))
        return best;
    for (int t = 0; t < TILES; t++) {
        int64_t cost = (p->heads_q + tile_rows[t] - 1) / tile_rows[t] * list_cost[t];
        if (cost < (p->heads_q + tile_rows[best] - 1) / tile_rows[best] * list_cost[best])
            best = t;
    }
    return best;
}

/* Key splits, from the request's own shape alone: the batch around it changes no bit of its
 * result. */
static int64_t splits_of(const struct mla_job *job, int tile, int64_t row_tiles, int64_t keys)
{
    int64_t steps = (keys + MLA_MQA_KEYS - 1) / MLA_MQA_KEYS;
    int64_t splits = job->wanted_splits;
    if (splits <= 0) {
        int64_t room = ENOUGH_TILES / row_tiles, least = least_keys[tile];
        if (mla_mqa_uses_lists(
                job)) /* short, and half the latency is worth a few percent of throughput */
            least = least_keys[0];
        splits = keys / least;
        splits = splits < room ? splits : room;
        splits = splits < MOST_SPLITS ? splits : MOST_SPLITS;
    }
    splits = splits < steps ? splits : steps;
    return splits < 1 ? 1 : splits;
}

struct mla_mqa_cut mla_mqa_any_cut(const struct mla_job *job, const struct mla_request *r)
{
    const mla_problem *p = job->problem;
    bool lists = mla_mqa_uses_lists(job);
    int64_t all = r->query_len * p->heads_q, keys = lists ? p->topk : r->seq_len_kv;
    struct mla_mqa_cut cut = {.tile = lists ? tile_of_list(p) : tile_of(all)};
    int64_t rows = tile_rows[cut.tile];
    cut.tiles = (all + rows - 1) / rows;
    if (lists)
        cut.tiles = r->query_len * ((p->heads_q + rows - 1) / rows);
    if (cut.tiles)
        cut.splits = splits_of(job, cut.tile, cut.tiles, keys);
    return cut;
}

struct mla_mqa_tile mla_mqa_any_tile(const mla_problem *p, int tile)
{
    int rows = tile_rows[tile], rope = (int)p->qk_rope_dim;
    bool packed = mla_cache_is_packed(p->cache_format);
    return p->q_dtype == MLA_BF16 ? mla_mqa_tile_bf16(rows, rope, packed)
                                  : mla_mqa_tile_f16(rows, rope, packed);
}

static const struct mla_mqa_engine any_engine = {
    .name = "mqa_any",
    .num_tiles = TILES,
    .most_shared = MLA_ANY_SHARED_BYTES,
    .fills = true,
    .supports = any_supports,
    .cut = mla_mqa_any_cut,
    .tile = mla_mqa_any_tile,
};

const struct mla_kernel mla_mqa_any = {
    .name = "mqa_any",
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |
               MLA_BIT(MLA_CACHE_MODEL1) | MLA_BIT(MLA_CACHE_V41) | MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),
    .engine = &any_engine,
    MLA_MQA_ABSORBED_ROW,
};

const struct mla_kernel mla_mqa_latent_any = {
    .name = "mqa_latent_any",
    .architecture = "sm_80+",
    .proof = MLA_PROOF_SILICON,
    .formats = MLA_BIT(MLA_CACHE_BF16) | MLA_BIT(MLA_CACHE_F16) | MLA_BIT(MLA_CACHE_FP8_DS_MLA) |
               MLA_BIT(MLA_CACHE_NVFP4_DS_MLA),
    .engine = &any_engine,
    MLA_MQA_LATENT_ROW,
};
