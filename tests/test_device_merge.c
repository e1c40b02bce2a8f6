/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
/* mla_merge on a device against the CPU in fp64: 0 to 32 parts, all types, bases, strides, sinks,
 * parts that are empty and hold NaN; the same bits when run again. On CUDA also in a graph that is
 * replayed with other contents, and on two streams at once. With the word "model" on the functional
 * model. Exit 77 = skipped, with the reason. */
#include "common/format.h"
#include "common/kernel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef MLA_WITH_CUDA
#include "support_cuda.h"
#endif

enum { MOST_PARTS = 32 };

static mla_context *cpu, *target;
static int failures, checks;
static double worst;
static uint64_t rng = 5;

static uint32_t next32(void)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t x = rng ^ rng >> 33;
    return (uint32_t)(x * 0xff51afd7ed558ccdull >> 32);
}

static double uniform(void)
{
    return (next32() + 0.5) / 4294967296.0;
}

static void must(mla_status status)
{
    if (status == MLA_OK)
        return;
    printf("%s\n", mla_last_error());
    exit(1);
}

static void *grab(size_t bytes)
{
    void *p = aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (!p)
        exit(1);
    return p;
}

static inline __attribute__((unused)) bool on_cuda(void)
{
    return target->backend == MLA_BACKEND_CUDA;
}

/* Memory of the target: a copy of host memory, or (model) host memory itself. */
static void *to_target(void *host, size_t bytes)
{
#ifdef MLA_WITH_CUDA
    if (on_cuda())
        return upload(host, bytes);
#endif
    (void)bytes;
    return host;
}

static void from_target(void *host, const void *there, size_t bytes)
{
#ifdef MLA_WITH_CUDA
    if (on_cuda()) {
        CUDA(cudaDeviceSynchronize());
        download(host, there, bytes);
    }
#endif
    (void)host, (void)there, (void)bytes;
}

static void drop(void *there)
{
#ifdef MLA_WITH_CUDA
    if (on_cuda())
        CUDA(cudaFree(there));
#endif
    (void)there;
}

static void report(bool ok, const char *what, const char *name)
{
    checks++;
    failures += !ok;
    if (!ok && failures <= 20)
        printf("FAILED %s: %s\n", what, name);
}

struct shape {
    int64_t parts, rows, heads, dim;
    mla_dtype part, out;
    mla_lse_base in_base, out_base;
    bool plus_inf, sink, strides, huge, no_lse;
};

/* One merge with its operands on both sides. */
struct merge {
    mla_merge_args host, there; /* the same, in host memory and in the target's */
    mla_tensor tensors[4][MOST_PARTS];
    void *memory[2 * MOST_PARTS + 1], *copies[2 * MOST_PARTS + 1];
    size_t bytes[2 * MOST_PARTS + 1];
    int used;
    size_t out_bytes, lse_bytes;
    int64_t out_stride[2], lse_stride[2];
};

static mla_tensor both(struct merge *m, void *host, size_t bytes, const int64_t stride[2],
                       mla_tensor *there)
{
    m->memory[m->used] = host;
    m->bytes[m->used] = bytes;
    m->copies[m->used] = to_target(host, bytes);
    *there = (mla_tensor){m->copies[m->used++], {stride[0], stride[1]}};
    return (mla_tensor){host, {stride[0], stride[1]}};
}

/* Row 0 is empty in all parts, row 1 in all but one, others here and there; empty parts hold
 * NaN. */
static void fill(struct merge *m, const struct shape *s)
{
    for (int64_t i = 0; i < s->parts; i++) {
        char *out = m->memory[2 * i];
        float *lse = m->memory[2 * i + 1];
        memset(out, 0xFF, m->bytes[2 * i]);
        for (int64_t t = 0; t < s->rows; t++)
            for (int64_t h = 0; h < s->heads; h++) {
                bool none = t == 0 || (t == 1 && i != s->parts / 2) || next32() % 4 == 0;
                double x = (s->huge ? 3000 : 20) * (2 * uniform() - 1);
                lse[t * m->lse_stride[0] + h * m->lse_stride[1]] =
                    (float)(!none                  ? x
                            : s->plus_inf && t % 2 ? INFINITY
                                                   : -INFINITY);
                for (int64_t c = 0; c < s->dim && !none; c++) {
                    double value = 2 * uniform() - 1;
                    mla_store_f64(s->part,
                                  out + (t * m->out_stride[0] + h * m->out_stride[1] + c) *
                                            (int64_t)mla_dtype_bytes(s->part),
                                  1, &value);
                }
            }
    }
    float *sink = m->memory[2 * s->parts];
    for (int64_t h = 0; s->sink && h < s->heads; h++)
        sink[h] = h % 4 == 1 ? INFINITY : h % 4 == 2 ? -INFINITY : (float)(20 * uniform() - 10);
}

static void make(struct merge *m, const struct shape *s)
{
    *m = (struct merge){0};
    m->out_stride[1] = s->dim + (s->strides ? 3 : 0);
    m->out_stride[0] = s->heads * m->out_stride[1] + (s->strides ? 5 : 0);
    m->lse_stride[0] = s->strides ? 1 : s->heads;
    m->lse_stride[1] = s->strides ? s->rows : 1;
    m->out_bytes = (size_t)(s->rows * m->out_stride[0]);
    m->lse_bytes = (size_t)(s->rows * s->heads) * 4;
    mla_merge_args a = {.parts = s->parts,
                        .rows = s->rows,
                        .heads = s->heads,
                        .dim = s->dim,
                        .part_dtype = s->part,
                        .out_dtype = s->out,
                        .part_base = s->in_base,
                        .out_base = s->out_base,
                        .plus_inf_is_empty = s->plus_inf};
    m->host = m->there = a;
    for (int64_t i = 0; i < s->parts; i++) {
        size_t bytes = m->out_bytes * mla_dtype_bytes(s->part);
        m->tensors[0][i] = both(m, grab(bytes), bytes, m->out_stride, &m->tensors[1][i]);
        m->tensors[2][i] =
            both(m, grab(m->lse_bytes), m->lse_bytes, m->lse_stride, &m->tensors[3][i]);
    }
    mla_tensor sink;
    float *host_sink =
        both(m, grab((size_t)s->heads * 4), (size_t)s->heads * 4, m->lse_stride, &sink).data;
    m->host.attn_sink = s->sink ? host_sink : NULL;
    m->there.attn_sink = s->sink ? sink.data : NULL;
    m->host.part_out = m->tensors[0];
    m->there.part_out = m->tensors[1];
    m->host.part_lse = m->tensors[2];
    m->there.part_lse = m->tensors[3];
}

/* New contents behind the same addresses. */
static void change(struct merge *m, const struct shape *s)
{
    fill(m, s);
#ifdef MLA_WITH_CUDA
    for (int i = 0; on_cuda() && i < m->used; i++)
        CUDA(cudaMemcpy(m->copies[i], m->memory[i], m->bytes[i], cudaMemcpyHostToDevice));
#endif
}

static void release(struct merge *m)
{
    for (int i = 0; i < m->used; i++) {
        drop(m->copies[i]);
        free(m->memory[i]);
    }
}

/* The target's result against fp64. A weight's logarithm is off by 4 units of the largest lse and 4
 * of exp2; the sum of n parts by n + 4 units. */
static void judge(const struct merge *m, const struct shape *s, const char *out, const float *lse,
                  const char *name)
{
    mla_merge_args a = m->host;
    int64_t item = (int64_t)mla_dtype_bytes(s->out), bad = 0;
    double *want = grab((size_t)(s->rows * s->heads * (s->dim + 1)) * 8);
    double *want_lse = want + s->rows * s->heads * s->dim;
    double u = s->out == MLA_BF16 ? 0x1p-8 : s->out == MLA_F16 ? 0x1p-11 : 0x1p-24;
    double unit = s->out_base == MLA_LSE_2 ? M_LN2 : 1;
    a.out_dtype = MLA_F64;
    a.out = (mla_tensor){want, {0, 0}};
    a.lse = (mla_tensor){want_lse, {0, 0}};
    must(mla_merge(cpu, &a, NULL));
    double log_error = 0x1p-21 + 4 * 0x1p-23 * (s->huge ? 3000 : 20);
    double share = 2 * log_error + (double)(s->parts + 4) * 0x1p-23;
    for (int64_t t = 0; t < s->rows; t++)
        for (int64_t h = 0; h < s->heads; h++) {
            double l = want_lse[t * s->heads + h] * unit, got;
            if (lse) {
                got = (double)lse[t * m->lse_stride[0] + h * m->lse_stride[1]] * unit;
                bad += !(got == l || fabs(got - l) <= share + 0x1p-23 * fabs(l));
            }
            for (int64_t c = 0; c < s->dim; c++) {
                double o = want[(t * s->heads + h) * s->dim + c];
                double bound = share + u * (fabs(o) + share) + 0x1p-24; /* parts are below 1 */
                mla_load_f64(s->out, out + (t * m->out_stride[0] + h * m->out_stride[1] + c) * item,
                             1, &got);
                bad += !(fabs(got - o) <= bound);
                worst = fmax(worst, fabs(got - o) / bound);
                bad += isinf(l) && got != 0;
            }
        }
    report(bad == 0, "values", name);
    /* Gaps between rows keep what they held. */
    for (int64_t i = 0; i < s->rows * m->out_stride[0]; i++) {
        int64_t t = i / m->out_stride[0], at = i % m->out_stride[0];
        bool gap = at >= s->heads * m->out_stride[1] || at % m->out_stride[1] >= s->dim;
        for (int64_t b = 0; gap && b < item; b++)
            bad += (unsigned char)out[(t * m->out_stride[0] + at) * item + b] != 0xA5;
    }
    report(bad == 0, "gaps", name);
    free(want);
}

static void check(const struct shape *s)
{
    struct merge m;
    char name[160];
    snprintf(name, sizeof name, "%d parts, %d x %d x %d, %s to %s, base %d to %d, %d%d%d%d%d",
             (int)s->parts, (int)s->rows, (int)s->heads, (int)s->dim, mla_dtype_name(s->part),
             mla_dtype_name(s->out), (int)s->in_base, (int)s->out_base, s->plus_inf, s->sink,
             s->strides, s->huge, s->no_lse);
    make(&m, s);
    change(&m, s);
    size_t bytes = m.out_bytes * mla_dtype_bytes(s->out);
    char *out[2] = {grab(bytes), grab(bytes)};
    float *lse[2] = {grab(m.lse_bytes), grab(m.lse_bytes)};
    for (int i = 0; i < 2; i++) { /* again: the same bits */
        memset(out[i], 0xA5, bytes);
        memset(lse[i], 0xA5, m.lse_bytes);
        void *there = to_target(out[i], bytes), *lse_there = to_target(lse[i], m.lse_bytes);
        m.there.out = (mla_tensor){there, {m.out_stride[0], m.out_stride[1]}};
        m.there.lse =
            (mla_tensor){s->no_lse ? NULL : lse_there, {m.lse_stride[0], m.lse_stride[1]}};
        must(mla_merge(target, &m.there, NULL));
        from_target(out[i], there, bytes);
        from_target(lse[i], lse_there, m.lse_bytes);
        drop(there);
        drop(lse_there);
    }
    report(!memcmp(out[0], out[1], bytes) && !memcmp(lse[0], lse[1], m.lse_bytes), "again", name);
    judge(&m, s, out[0], s->no_lse ? NULL : lse[0], name);
    for (int i = 0; i < 2; i++) {
        free(out[i]);
        free(lse[i]);
    }
    release(&m);
}

static void check_refusals(void)
{
    struct shape s = {.parts = 2, .rows = 2, .heads = 2, .dim = 8, .part = MLA_F32, .out = MLA_F32};
    struct merge m;
    make(&m, &s);
    change(&m, &s);
    m.there.out.data = m.copies[0];
    mla_merge_args a = m.there;
    a.out_dtype = MLA_F64;
    report(mla_merge(target, &a, NULL) == MLA_ERR_UNSUPPORTED && strstr(mla_last_error(), "f64"),
           "refusal", "f64");
    a = m.there;
    a.parts = MOST_PARTS + 1;
    mla_tensor many[2][MOST_PARTS + 1];
    for (int i = 0; i <= MOST_PARTS; i++) {
        many[0][i] = m.tensors[1][0];
        many[1][i] = m.tensors[3][0];
    }
    a.part_out = many[0];
    a.part_lse = many[1];
    report(mla_merge(target, &a, NULL) == MLA_ERR_UNSUPPORTED && strstr(mla_last_error(), "33"),
           "refusal", "33 parts");
    release(&m);
}

#ifdef MLA_WITH_CUDA
/* Captured once, replayed with other contents; a second stream beside it. */
static void check_graph(void)
{
    const struct shape s = {.parts = 7,
                            .rows = 200,
                            .heads = 16,
                            .dim = 512,
                            .part = MLA_F32,
                            .out = MLA_BF16,
                            .sink = 1};
    struct merge m[2];
    char *there[2], *out = grab((size_t)(s.rows * s.heads * s.dim) * 2);
    float *lse_there[2], *lse = grab((size_t)(s.rows * s.heads) * 4);
    cudaStream_t stream[2];
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    for (int i = 0; i < 2; i++) {
        make(&m[i], &s);
        there[i] = device(m[i].out_bytes * 2);
        lse_there[i] = device(m[i].lse_bytes);
        m[i].there.out.data = there[i];
        m[i].there.lse.data = lse_there[i];
        CUDA(cudaStreamCreateWithFlags(&stream[i], cudaStreamNonBlocking));
    }
    CUDA(cudaStreamBeginCapture(stream[0], cudaStreamCaptureModeGlobal));
    must(mla_merge(target, &m[0].there, stream[0]));
    CUDA(cudaStreamEndCapture(stream[0], &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 2; i++) {
            change(&m[i], &s);
            CUDA(cudaMemset(there[i], 0xA5, m[i].out_bytes * 2));
        }
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(exec, stream[0]));
        must(mla_merge(target, &m[1].there, stream[1]));
        for (int i = 0; i < 2; i++) {
            from_target(out, there[i], m[i].out_bytes * 2);
            from_target(lse, lse_there[i], m[i].lse_bytes);
            judge(&m[i], &s, out, lse, i ? "second stream" : "graph");
        }
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    for (int i = 0; i < 2; i++) {
        CUDA(cudaStreamDestroy(stream[i]));
        drop(there[i]);
        drop(lse_there[i]);
        release(&m[i]);
    }
    free(out);
    free(lse);
}
#endif

int main(int argc, char **argv)
{
    bool model = argc > 1 && strcmp(argv[1], "model") == 0;
    const mla_context_options options = {model ? MLA_BACKEND_MODEL : MLA_BACKEND_CUDA, 0, 0};
    if (mla_context_create(&options, &target) != MLA_OK) {
        printf("skipped: %s\n", mla_last_error());
        return 77;
    }
    must(mla_context_create(NULL, &cpu));
    static const int64_t parts[] = {0, 1, 2, 7, 32}, dims[] = {1, 5, 128, 300, 512};
    for (int i = 0; i < 40; i++) {
        const struct shape s = {.parts = parts[i % 5],
                                .rows = 5 + i % 3,
                                .heads = 1 + i % 7,
                                .dim = dims[i / 2 % 5],
                                .part = (mla_dtype)(i % 3),
                                .out = (mla_dtype)(i / 3 % 3),
                                .in_base = i & 1 ? MLA_LSE_2 : MLA_LSE_E,
                                .out_base = i & 2 ? MLA_LSE_2 : MLA_LSE_E,
                                .plus_inf = i & 4,
                                .sink = i & 8,
                                .strides = i / 3 & 1,
                                .huge = i % 11 == 3,
                                .no_lse = i % 9 == 5};
        check(&s);
    }
    check_refusals();
#ifdef MLA_WITH_CUDA
    if (on_cuda())
        check_graph();
#endif
    printf("merge: %d checks, %d failed; %.3f of the bound at most\n", checks, failures, worst);
    mla_context_destroy(target);
    mla_context_destroy(cpu);
    return failures > 0;
}
