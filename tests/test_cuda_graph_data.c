/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
/* Cache records and top-k in CUDA graphs: captured once, replayed while values, slots and scores
 * change behind the same addresses, beside a second stream that works on other data. Everything
 * must have the CPU's bits. Exit 77 = skipped (no device). */
#include <stdio.h>

#ifndef MLA_WITH_CUDA
int main(void)
{
    printf("skipped: this build has no CUDA backend\n");
    return 77;
}
#else

#include "support_cuda.h"

#include "mla/cache.h"
#include "mla/index.h"

#include <math.h>

enum { ROUNDS = 3, STREAMS = 2 };

static mla_context *cpu, *cuda;
static int failures, checks;
static uint64_t rng = 9;

static uint32_t next32(void)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t x = rng ^ rng >> 33;
    return (uint32_t)(x * 0xff51afd7ed558ccdull >> 32);
}

static float normal(void)
{
    double u = (next32() + 0.5) / 4294967296.0, v = (next32() + 0.5) / 4294967296.0;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static void report(bool ok, const char *what, const char *name)
{
    checks++;
    failures += !ok;
    if (!ok)
        printf("FAILED %s: %s\n", what, name);
}

/* A call as a graph: record(with, stream) enqueues it. */
static cudaGraphExec_t captured(void (*record)(void *, cudaStream_t), void *with,
                                cudaStream_t stream)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    record(with, stream);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    return exec;
}

/* ----------------------------------------------------------------- records */

enum { TOKENS = 300, SLOTS = 1024, PAGE = 64 };

/* Values to records and back, on one side. */
struct records {
    mla_cache cache;
    mla_cache_values in, out;
    int64_t *slots;
    size_t cache_bytes;
};

static void write_and_read(void *with, cudaStream_t stream)
{
    struct records *r = with;
    OK(mla_cache_write(cuda, &r->cache, &r->in, r->slots, TOKENS, MLA_SCALE_DEFAULT, stream));
    OK(mla_cache_read(cuda, &r->cache, r->slots, TOKENS, &r->out, stream));
}

static struct records records_of(mla_cache_format format, void *(*room)(size_t))
{
    bool wide = format == MLA_CACHE_MODEL1 || format == MLA_CACHE_V41;
    struct records r = {.cache = {.format = format,
                                  .kv_lora_rank = 512,
                                  .qk_rope_dim = wide ? 0 : 64,
                                  .page_size = PAGE,
                                  .num_pages = SLOTS / PAGE}};
    r.cache_bytes = mla_cache_row_bytes(format, 512, r.cache.qk_rope_dim) * SLOTS;
    r.cache.kv_cache.data = room(r.cache_bytes);
    r.in.dtype = r.out.dtype = MLA_BF16;
    r.in.kv_c.data = room((size_t)TOKENS * 1024);
    r.out.kv_c.data = room((size_t)TOKENS * 1024);
    r.in.k_pe.data = wide ? NULL : room((size_t)TOKENS * 128);
    r.out.k_pe.data = wide ? NULL : room((size_t)TOKENS * 128);
    r.slots = room(TOKENS * 8);
    return r;
}

/* New values and slots on both sides; what the caches held stays. */
static void change_records(struct records *host, struct records *there)
{
    uint16_t *c = host->in.kv_c.data, *rope = host->in.k_pe.data;
    float size = ldexpf(1, (int)(next32() % 12) - 6);
    for (int64_t i = 0; i < TOKENS * 512; i++)
        c[i] = mla_f32_to_bf16(size * normal());
    for (int64_t i = 0; rope && i < TOKENS * 64; i++)
        rope[i] = mla_f32_to_bf16(normal());
    int64_t step = 2 * (int64_t)(next32() % 400) + 1; /* odd: no slot twice */
    for (int64_t i = 0; i < TOKENS; i++)
        host->slots[i] = i % 17 == 3 ? -1 : i * step % SLOTS;
    CUDA(cudaMemcpy(there->in.kv_c.data, c, (size_t)TOKENS * 1024, cudaMemcpyHostToDevice));
    if (rope)
        CUDA(cudaMemcpy(there->in.k_pe.data, rope, (size_t)TOKENS * 128, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(there->slots, host->slots, TOKENS * 8, cudaMemcpyHostToDevice));
}

static void compare_there(const void *host, const void *there, size_t bytes, const char *what,
                          const char *name)
{
    char *got = allocate(bytes);
    download(got, there, bytes);
    report(memcmp(got, host, bytes) == 0, what, name);
    free(got);
}

static void *zeroed_host(size_t bytes)
{
    return memset(allocate(bytes), 0, bytes);
}

static void *zeroed_device(size_t bytes)
{
    void *p = device(bytes);
    CUDA(cudaMemset(p, 0, bytes));
    return p;
}

static void check_records(mla_cache_format format)
{
    const char *name = mla_cache_format_name(format);
    struct records host[STREAMS], there[STREAMS];
    cudaStream_t stream[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        host[i] = records_of(format, zeroed_host);
        there[i] = records_of(format, zeroed_device);
        CUDA(cudaStreamCreateWithFlags(&stream[i], cudaStreamNonBlocking));
    }
    cudaGraphExec_t exec = captured(write_and_read, &there[0], stream[0]);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < STREAMS; i++)
            change_records(&host[i], &there[i]);
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(exec, stream[0]));
        write_and_read(&there[1], stream[1]);
        CUDA(cudaDeviceSynchronize());
        for (int i = 0; i < STREAMS; i++) {
            OK(mla_cache_write(cpu, &host[i].cache, &host[i].in, host[i].slots, TOKENS,
                               MLA_SCALE_DEFAULT, NULL));
            OK(mla_cache_read(cpu, &host[i].cache, host[i].slots, TOKENS, &host[i].out, NULL));
            compare_there(host[i].cache.kv_cache.data, there[i].cache.kv_cache.data,
                          host[i].cache_bytes, i ? "records, second stream" : "records, graph",
                          name);
            compare_there(host[i].out.kv_c.data, there[i].out.kv_c.data, (size_t)TOKENS * 1024,
                          i ? "read-back, second stream" : "read-back, graph", name);
        }
    }
    CUDA(cudaGraphExecDestroy(exec));
    for (int i = 0; i < STREAMS; i++)
        CUDA(cudaStreamDestroy(stream[i])); /* memory goes with the process */
}

/* ------------------------------------------------------------------- top-k */

struct lists {
    mla_topk_args args;
    void *workspace;
    size_t bytes;
};

static void select_top(void *with, cudaStream_t stream)
{
    struct lists *l = with;
    OK(mla_topk_run(cuda, &l->args, l->workspace, l->bytes, stream));
}

static void check_topk(void)
{
    const int64_t rows = 37, columns = 9000, topk = 512;
    const size_t in_bytes = (size_t)(rows * columns) * 4, out_bytes = (size_t)(rows * topk) * 4;
    struct lists there[STREAMS];
    cudaStream_t stream[STREAMS];
    float *in[STREAMS];
    mla_topk_args host = {.rows = rows, .columns = columns, .topk = topk};
    for (int i = 0; i < STREAMS; i++) {
        there[i].args = host;
        in[i] = allocate(in_bytes);
        there[i].args.in.data = device(in_bytes);
        there[i].args.indices.data = device(out_bytes);
        there[i].args.scores.data = device(out_bytes);
        OK(mla_topk_workspace_bytes(cuda, &there[i].args, &there[i].bytes));
        there[i].workspace = device(there[i].bytes);
        CUDA(cudaStreamCreateWithFlags(&stream[i], cudaStreamNonBlocking));
    }
    size_t bytes;
    OK(mla_topk_workspace_bytes(cpu, &host, &bytes));
    void *workspace = allocate(bytes);
    host.indices.data = allocate(out_bytes);
    host.scores.data = allocate(out_bytes);
    cudaGraphExec_t exec = captured(select_top, &there[0], stream[0]);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < STREAMS; i++) {
            for (int64_t k = 0; k < rows * columns; k++)
                in[i][k] = round == 1 ? (float)(next32() % 50) : normal(); /* many ties, none */
            CUDA(cudaMemcpy(there[i].args.in.data, in[i], in_bytes, cudaMemcpyHostToDevice));
            CUDA(cudaMemset(there[i].args.indices.data, 0x77, out_bytes));
        }
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(exec, stream[0]));
        select_top(&there[1], stream[1]);
        CUDA(cudaDeviceSynchronize());
        for (int i = 0; i < STREAMS; i++) {
            host.in.data = in[i];
            OK(mla_topk_run(cpu, &host, workspace, bytes, NULL));
            compare_there(host.indices.data, there[i].args.indices.data, out_bytes,
                          i ? "second stream" : "graph", "top-k indices");
            compare_there(host.scores.data, there[i].args.scores.data, out_bytes,
                          i ? "second stream" : "graph", "top-k scores");
        }
    }
    CUDA(cudaGraphExecDestroy(exec));
}

int main(void)
{
    if (!open_both(&cuda, &cpu))
        return 77;
    for (int format = MLA_CACHE_BF16; format <= MLA_CACHE_NVFP4_DS_MLA; format++)
        check_records((mla_cache_format)format);
    check_topk();
    printf("graphs of records and top-k: %d checks, %d failed\n", checks, failures);
    mla_context_destroy(cpu);
    mla_context_destroy(cuda);
    return failures > 0;
}
#endif
