/* SPDX-License-Identifier: Apache-2.0 */
/* CPU kernels against sgemm. Attention FLOP alone are counted: 2·(d_qk + d_v) for each head and
 * each causal pair of query and key (dense, masked) or each listed pair (sparse), with the widths
 * of the kernel's own form. The yardstick is a square sgemm on as many threads, before and after
 * each run; a run whose yardstick moved by more than a tenth is not counted. */
#include "bench/bench.h"

#include "common/status.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { KEYS = 4096, TOPK = 2048, SQUARE = 2048 };

struct line {
    const char *kernel;
    mla_form form;
    mla_route route;
    bool lists;
};

/* Each kernel in its own form first, then whole routes from the latent problem. */
static const struct line lines[] = {
    {"sparse_mqa_avx2", MLA_FORM_ABSORBED, MLA_ROUTE_SPARSE_MQA, true},
    {"dense_mqa_avx2", MLA_FORM_ABSORBED, MLA_ROUTE_DENSE_MQA, false},
    {"dense_mha_avx2", MLA_FORM_EXPANDED, MLA_ROUTE_DENSE_MHA, false},
    {"masked_mha_avx2", MLA_FORM_EXPANDED, MLA_ROUTE_MASKED_MHA, true},
    {"sparse_mqa_avx2", MLA_FORM_LATENT, MLA_ROUTE_SPARSE_MQA, true},
    {"dense_mha_avx2", MLA_FORM_LATENT, MLA_ROUTE_DENSE_MHA, false},
    {"masked_mha_avx2", MLA_FORM_LATENT, MLA_ROUTE_MASKED_MHA, true},
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* GFLOP/s of a square sgemm: the best of three. */
static double yardstick(int threads, float *a, float *b, float *c)
{
    int before = openblas_get_num_threads();
    double best = 0;
    openblas_set_num_threads(threads);
    for (int i = 0; i < 3; i++) {
        double start = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SQUARE, SQUARE, SQUARE, 1, a, SQUARE,
                    b, SQUARE, 0, c, SQUARE);
        double rate = 2.0 * SQUARE * SQUARE * SQUARE / (now() - start) * 1e-9;
        best = rate > best ? rate : best;
    }
    openblas_set_num_threads(before);
    return best;
}

/* bf16 values of size about one: random sign and mantissa, exponent of [0.5, 1) or [1, 2). */
static mla_tensor random_bf16(int64_t elements, uint64_t *state)
{
    mla_tensor t = {mla_alloc((size_t)elements, sizeof(uint16_t)), {0, 0}};
    for (int64_t i = 0; t.data && i < elements; i++)
        ((uint16_t *)t.data)[i] = (uint16_t)((next(state) >> 40 & 0x80FF) | 0x3F00);
    return t;
}

/* Row i lists min(topk, i's visible keys) of them, each equally likely, in random order. */
static mla_tensor random_lists(int64_t rows, double *pairs, uint64_t *state)
{
    mla_tensor t = {mla_alloc((size_t)(rows * TOPK), sizeof(int32_t)), {0, 0}};
    static const int64_t keys = KEYS;
    int32_t *order = mla_alloc(KEYS, sizeof *order);
    *pairs = 0;
    for (int64_t i = 0; t.data && order && i < rows; i++) {
        int64_t seen = keys - rows + i + 1, count = seen < TOPK ? seen : TOPK;
        for (int64_t j = 0; j < seen; j++)
            order[j] = (int32_t)j;
        for (int64_t e = 0; e < TOPK; e++) {
            int32_t *list = (int32_t *)t.data + i * TOPK;
            if (e >= count) {
                list[e] = -1;
                continue;
            }
            int64_t j = e + (int64_t)(next(state) % (uint64_t)(seen - e));
            list[e] = order[j];
            order[j] = order[e];
        }
        *pairs += (double)count;
    }
    if (!order) {
        mla_free(t.data);
        t.data = NULL;
    }
    mla_free(order);
    return t;
}

struct job {
    mla_problem p;
    mla_tensors t;
    int32_t cu[2], kv[1];
    double flop;
};

static void free_job(struct job *j)
{
    mla_tensor *const all[] = {
        &j->t.q_nope, &j->t.q_pe, &j->t.w_uk, &j->t.w_uv,         &j->t.q,  &j->t.k, &j->t.v,
        &j->t.kv_c,   &j->t.k_pe, &j->t.out,  &j->t.topk_indices, &j->t.lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        mla_free(all[i]->data);
}

/* Returns false if memory is short. */
static bool make_job(struct job *j, const struct line *line, int64_t heads, int64_t rows)
{
    uint64_t random = 88172645463325252u;
    memset(j, 0, sizeof *j);
    mla_problem *p = &j->p;
    mla_problem_init(p);
    p->form = line->form;
    p->heads_q = heads;
    p->heads_kv = line->form == MLA_FORM_EXPANDED ? heads : 1;
    p->batch = 1;
    j->cu[1] = (int32_t)rows;
    j->kv[0] = KEYS;
    p->cu_seqlens_q = j->cu;
    p->seq_lens_kv = j->kv;
    p->topk = line->lists ? TOPK : 0;
    int64_t L = p->kv_lora_rank, dn = p->qk_nope_dim, dr = p->qk_rope_dim, dv = p->v_dim;
    bool absorbed = line->form == MLA_FORM_ABSORBED, mqa = line->kernel[0] == 's' || absorbed;
    double pairs = (double)rows * (KEYS - rows) + (double)rows * (double)(rows + 1) / 2, listed = 0;
    bool ok = true;
#define NEED(tensor, made) ok = ok && (j->t.tensor = (made)).data
    if (line->form == MLA_FORM_LATENT) {
        NEED(q_nope, random_bf16(rows * heads * dn, &random));
        NEED(q_pe, random_bf16(rows * heads * dr, &random));
        NEED(w_uk, random_bf16(heads * dn * L, &random));
        NEED(w_uv, random_bf16(heads * dv * L, &random));
    } else {
        NEED(q, random_bf16(rows * heads * (absorbed ? L + dr : dn + dr), &random));
    }
    if (line->form == MLA_FORM_EXPANDED) {
        NEED(k, random_bf16(KEYS * heads * (dn + dr), &random));
        NEED(v, random_bf16(KEYS * heads * dv, &random));
    } else {
        NEED(kv_c, random_bf16(KEYS * L, &random));
        NEED(k_pe, random_bf16(KEYS * dr, &random));
    }
    if (line->lists)
        NEED(topk_indices, random_lists(rows, &listed, &random));
    NEED(out, random_bf16(rows * heads * (absorbed ? L : dv), &random));
    ok = ok && (j->t.lse.data = mla_alloc((size_t)(rows * heads), sizeof(float)));
#undef NEED
    if (line->route == MLA_ROUTE_SPARSE_MQA)
        pairs = listed;
    j->flop = 2.0 * pairs * (double)heads * (double)(mqa ? L + dr + L : dn + dr + dv);
    if (!ok)
        free_job(j);
    return ok;
}

/* Best rate and share of one job over the repeats. */
static mla_status measure(const mla_context *context, const struct line *line, struct job *j,
                          int threads, int repeats, float *square, double best[2], int *steady)
{
    mla_plan_options options = {.route = line->route, .kernel = line->kernel};
    mla_plan *plan;
    mla_status status = mla_plan_create(context, &j->p, &options, &plan);
    if (status != MLA_OK)
        return status;
    size_t bytes = mla_plan_workspace_bytes(plan);
    char *memory = mla_alloc(bytes + 256, 1);
    if (!memory)
        status = mla_fail(MLA_ERR_MEMORY, "bench: cannot allocate %zu bytes", bytes);
    for (int i = 0; status == MLA_OK && i < repeats; i++) {
        float *b = square + SQUARE * SQUARE, *c = b + SQUARE * SQUARE;
        char *workspace = memory + (256 - (uintptr_t)memory % 256) % 256;
        double before = yardstick(threads, square, b, c), start = now();
        status = mla_run(plan, &j->t, workspace, bytes, NULL);
        double rate = j->flop / (now() - start) * 1e-9, after = yardstick(threads, square, b, c);
        double low = before < after ? before : after, high = before < after ? after : before;
        if (high > 1.1 * low)
            continue;
        ++*steady;
        if (rate / high > best[0] / (best[1] > 0 ? best[1] : 1)) {
            best[0] = rate;
            best[1] = high;
        }
    }
    mla_free(memory);
    mla_plan_destroy(plan);
    return status;
}

int mla_bench_cpu_ratio(FILE *to, int threads, int repeats, bool quick,
                        void (*row)(const struct mla_bench_ratio *row, void *user), void *user)
{
    static const int64_t head_counts[] = {128, 16};
    mla_context *context;
    char about[256];
    mla_status status =
        mla_context_create(&(mla_context_options){.backend = MLA_BACKEND_CPU, .threads = threads},
                           &context);
    if (status != MLA_OK)
        return mla_exit_status(status);
    if (threads == 0)
        threads = openblas_get_num_threads();
    float *square = mla_alloc(3 * (size_t)SQUARE * SQUARE, sizeof *square);
    if (!square)
        status = mla_fail(MLA_ERR_MEMORY, "bench: cannot allocate the sgemm yardstick");
    for (int64_t i = 0; square && i < 2 * SQUARE * SQUARE; i++)
        square[i] = (float)(i % 7 - 3);
    mla_context_describe(context, about, sizeof about);
    int64_t rows = quick ? 512 : KEYS;
    fprintf(to, "# %s; fp32, bf16 inputs, %d keys, %d queries, topk %d, causal\n", about, KEYS,
            (int)rows, TOPK);
    fprintf(to, "# attention FLOP only; share of a %d x %d sgemm; best of %d, steady ones\n",
            SQUARE, SQUARE, repeats);
    fprintf(to, "%% %-15s %-9s %5s %9s %9s %6s %7s\n", "kernel", "form", "heads", "GFLOP/s",
            "sgemm", "share", "steady");
    for (size_t i = 0; status == MLA_OK && i < sizeof lines / sizeof *lines; i++)
        for (int h = 0; status == MLA_OK && h < 2; h++) {
            struct job j;
            double best[2] = {0, 0};
            int steady = 0;
            if (!make_job(&j, &lines[i], head_counts[h], rows)) {
                status = mla_fail(MLA_ERR_MEMORY, "bench: cannot allocate tensors of %d heads",
                                  (int)head_counts[h]);
                break;
            }
            status = measure(context, &lines[i], &j, threads, repeats, square, best, &steady);
            free_job(&j);
            if (status != MLA_OK)
                break;
            fprintf(to, "  %-15s %-9s %5d %9.1f %9.1f %5.1f%% %3d/%d\n", lines[i].kernel,
                    mla_form_name(lines[i].form), (int)head_counts[h], best[0], best[1],
                    best[1] > 0 ? 100 * best[0] / best[1] : 0, steady, repeats);
            fflush(to);
            struct mla_bench_ratio ratio = {.kernel = lines[i].kernel,
                                            .form = lines[i].form,
                                            .heads = (int)head_counts[h],
                                            .steady = steady,
                                            .gflops = best[0],
                                            .sgemm = best[1],
                                            .share = best[1] > 0 ? best[0] / best[1] : 0};
            if (row)
                row(&ratio, user);
        }
    mla_free(square);
    mla_context_destroy(context);
    return mla_exit_status(status);
}
