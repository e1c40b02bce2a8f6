/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
// timeout: 300
/* mla_run in a CUDA graph: captured once, replayed while the contents behind its addresses change
 * (queries, caches, lists, their lengths, and the requests' lengths too); beside it the same plan
 * on a second stream, and two streams at once with different contents. Every result must have the
 * bits of a run of its own, and the first ones are judged by the bound. Exit 77 = skipped (no
 * device). */
#include <stdio.h>

#ifndef MLA_WITH_CUDA
int main(void)
{
    printf("skipped: this build has no CUDA backend\n");
    return 77;
}
#else

#include "support_cuda.h"
#include "validation/check.h"

static mla_context *cpu, *cuda;
static int failures, checks;

static const struct {
    mla_route route;
    const char *kernel, *text;
} cases[] = {
    {MLA_ROUTE_DENSE_MHA, "mha_any",
     "attend form=expanded heads=4 batch=q130s200,q3s90 nope=128 rope=64 v=128 sink=1"},
    {MLA_ROUTE_MASKED_MHA, "mha_any",
     "attend form=expanded heads=4 batch=q130s300,q3s90 nope=128 rope=64 v=128 topk=40 "
     "topk_lens=1"},
    {MLA_ROUTE_MASKED_MHA, "mha_any",
     "attend form=expanded heads=2 heads_kv=1 batch=q70s300 nope=192 rope=64 v=256 mask=1"},
    {MLA_ROUTE_DENSE_MQA, "mqa_any",
     "attend form=absorbed heads=16 batch=2q1s3000,q5s70 page=64 sink=1"},
    {MLA_ROUTE_SPARSE_MQA, "mqa_any",
     "attend form=absorbed heads=128 batch=2q1s3000,q5s200 page=64 topk=64 topk_lens=1 holes=1 "
     "cache=fp8_ds_mla"},
    {MLA_ROUTE_SPARSE_MQA, "sparse_mqa_group_any",
     "attend form=absorbed heads=16 batch=q9s300,3q2s200 topk=128 fill=sink page=16"},
    {MLA_ROUTE_SPARSE_MQA, "sparse_mqa_group_any",
     "attend form=absorbed heads=2 batch=q17s300 topk=100 fill=sink topk_lens=1 cache=fp8_ds_mla"},
    {MLA_ROUTE_DENSE_MHA, "mha_latent_any", "attend heads=6 batch=q70s300,3q1s77 page=16 topk=0"},
    {MLA_ROUTE_MASKED_MHA, "mha_latent_any",
     "attend heads=6 batch=q70s300,3q1s77 page=64 cache=fp8_ds_mla topk=40"},
    {MLA_ROUTE_SPARSE_MQA, "mqa_latent_any", "attend heads=6 batch=q70s300,3q1s77 topk=40 sink=1"},
    {MLA_ROUTE_DENSE_MQA, "mqa_latent_any",
     "attend heads=20 batch=q3s2500,3q1s77 cache=nvfp4_ds_mla page=64 topk=0"},
    {MLA_ROUTE_DENSE_MHA, "mha_generic", "attend model=tiny batch=q33s70,2q1s9 topk=0 dtype=f32"},
    {MLA_ROUTE_SPARSE_MQA, "mqa_generic", "attend model=tiny batch=q33s70,2q1s9 topk=8 page=4"},
    /* routes of its own for each request: several jobs in one graph */
    {MLA_ROUTE_AUTO, NULL, "attend heads=16 batch=q300s300,4q1s2000 topk=256 page=64"},
};

struct outputs {
    size_t bytes[3];
    char *device[3], *host[3];
};

static void make_case(struct mla_case *k, const char *text, int seed)
{
    struct mla_case_spec spec;
    char full[512];
    snprintf(full, sizeof full, "%s lse=1 max_logits=1 seed=%d", text, seed);
    OK(mla_case_spec_parse(&spec, full));
    OK(mla_case_make(&spec, k));
    mla_problem_release(&spec.problem);
    k->problem.out_dtype = k->problem.q_dtype;
    /* Lengths of this run: some requests shorter than planned. */
    int32_t *lens = mla_case_buffer(k, (size_t)k->problem.batch, 4);
    for (int64_t b = 0; b < k->problem.batch; b++) {
        int32_t least = k->problem.cu_seqlens_q[b + 1] - k->problem.cu_seqlens_q[b];
        lens[b] = k->problem.seq_lens_kv[b] - (int32_t)((seed * 5 + b) % 7);
        lens[b] = lens[b] < least ? least : lens[b];
    }
    k->tensors.seq_lens_kv = lens;
}

static void make_outputs(struct outputs *o, const mla_problem *p, mla_tensors *t)
{
    size_t rows = (size_t)(mla_total_q(p) * p->heads_q);
    size_t bytes[3] = {rows * (size_t)mla_d_v(p) * mla_dtype_bytes(p->out_dtype), rows * 4,
                       rows * 4};
    for (int i = 0; i < 3; i++) {
        o->bytes[i] = bytes[i];
        o->device[i] = device(bytes[i]);
        o->host[i] = allocate(bytes[i]);
    }
    t->out.data = o->device[0];
    t->lse.data = o->device[1];
    t->max_logits.data = o->device[2];
}

static void free_outputs(struct outputs *o)
{
    for (int i = 0; i < 3; i++) {
        CUDA(cudaFree(o->device[i]));
        free(o->host[i]);
    }
}

static void poison(struct outputs *o)
{
    for (int i = 0; i < 3; i++)
        CUDA(cudaMemset(o->device[i], 0xFF, o->bytes[i]));
}

static void fetch(struct outputs *o)
{
    for (int i = 0; i < 3; i++)
        download(o->host[i], o->device[i], o->bytes[i]);
}

static bool same(const struct outputs *a, const struct outputs *b)
{
    bool equal = true;
    for (int i = 0; i < 3; i++)
        equal &= memcmp(a->host[i], b->host[i], a->bytes[i]) == 0;
    return equal;
}

static void report(bool ok, const char *what, const char *text)
{
    checks++;
    failures += !ok;
    if (!ok)
        printf("FAILED %s: %s\n", what, text);
}

static void judge(const struct mla_case *k, const mla_plan *plan, const struct outputs *o,
                  const char *text)
{
    const mla_problem *p = &k->problem;
    mla_rounding *rounding = allocate((size_t)(p->batch + 1) * sizeof *rounding);
    const struct mla_result result = {p->out_dtype, MLA_F32, o->host[0], o->host[1], o->host[2]};
    const struct mla_check_options options = {.context = cpu, .rounding = rounding};
    struct mla_check_report r;
    for (int64_t b = 0; b < p->batch; b++) {
        mla_request_info info;
        OK(mla_plan_request(plan, b, &info));
        rounding[b] =
            mla_rounding_of(p, MLA_BACKEND_CUDA, MLA_PRECISION_FP32, info.route, p->out_dtype);
    }
    OK(mla_check_result(k, &result, &options, &r));
    if (r.verdict == MLA_FAIL)
        mla_check_print(stdout, k, &options, &r);
    report(r.verdict != MLA_FAIL, "bound", text);
    free(rounding);
}

enum { CONTENTS = 3, ROUNDS = 4, BOTH = 6 };

static void check(mla_route route, const char *kernel, const char *text)
{
    struct mla_case k[CONTENTS];
    struct device_inputs in[2] = {0};
    struct outputs out[2], want[CONTENTS];
    mla_plan *plan;
    void *workspace[2];
    cudaStream_t stream[2];
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    for (int i = 0; i < CONTENTS; i++)
        make_case(&k[i], text, i + 1);
    const mla_plan_options options = {.route = route, .kernel = kernel};
    OK(mla_plan_create(cuda, &k[0].problem, &options, &plan));
    size_t bytes = mla_plan_workspace_bytes(plan);
    for (int i = 0; i < 2; i++) {
        load_inputs(&in[i], &k[0]);
        make_outputs(&out[i], &k[0].problem, &in[i].tensors);
        workspace[i] = device(bytes);
        CUDA(cudaMemset(workspace[i], 0xFF, bytes));
        CUDA(cudaStreamCreateWithFlags(&stream[i], cudaStreamNonBlocking));
    }
    /* What each content must give: a run of its own, judged. */
    for (int i = 0; i < CONTENTS; i++) {
        mla_tensors unused = {0};
        make_outputs(&want[i], &k[i].problem, &unused);
        load_inputs(&in[1], &k[i]);
        poison(&out[1]);
        CUDA(cudaDeviceSynchronize());
        OK(mla_run(plan, &in[1].tensors, workspace[1], bytes, stream[1]));
        CUDA(cudaDeviceSynchronize());
        fetch(&out[1]);
        for (int o = 0; o < 3; o++)
            memcpy(want[i].host[o], out[1].host[o], out[1].bytes[o]);
        judge(&k[i], plan, &want[i], text);
        report(i == 0 || !same(&want[i], &want[i - 1]), "contents do not matter", text);
    }
    CUDA(cudaStreamBeginCapture(stream[0], cudaStreamCaptureModeGlobal));
    OK(mla_run(plan, &in[0].tensors, workspace[0], bytes, stream[0]));
    CUDA(cudaStreamEndCapture(stream[0], &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (int round = 0; round < ROUNDS; round++) {
        int mine = round % CONTENTS, other = (round + 1) % CONTENTS;
        load_inputs(&in[0], &k[mine]);
        load_inputs(&in[1], &k[other]);
        poison(&out[0]);
        poison(&out[1]);
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(exec, stream[0]));
        OK(mla_run(plan, &in[1].tensors, workspace[1], bytes, stream[1]));
        CUDA(cudaDeviceSynchronize());
        fetch(&out[0]);
        fetch(&out[1]);
        report(same(&out[0], &want[mine]), "replayed graph", text);
        report(same(&out[1], &want[other]), "second stream beside the graph", text);
    }
    /* Both streams busy, several runs each, nothing waited for. */
    poison(&out[0]);
    poison(&out[1]);
    CUDA(cudaDeviceSynchronize());
    for (int i = 0; i < BOTH; i++) {
        OK(mla_run(plan, &in[i % 2].tensors, workspace[i % 2], bytes, stream[i % 2]));
        CUDA(cudaGraphLaunch(exec, stream[0]));
    }
    CUDA(cudaDeviceSynchronize());
    fetch(&out[0]);
    fetch(&out[1]);
    report(same(&out[0], &want[(ROUNDS - 1) % CONTENTS]) && same(&out[1], &want[ROUNDS % CONTENTS]),
           "two streams at once", text);
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    for (int i = 0; i < 2; i++) {
        CUDA(cudaStreamDestroy(stream[i]));
        CUDA(cudaFree(workspace[i]));
        free_outputs(&out[i]);
        free_inputs(&in[i], &k[0].problem);
    }
    mla_plan_destroy(plan);
    for (int i = 0; i < CONTENTS; i++) {
        free_outputs(&want[i]);
        mla_case_free(&k[i]);
    }
}

int main(int argc, char **argv)
{
    if (!open_both(&cuda, &cpu))
        return 77;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (argc < 2 || strstr(cases[i].text, argv[1]))
            check(cases[i].route, cases[i].kernel, cases[i].text);
    printf("graphs: %d checks, %d failed\n", checks, failures);
    mla_context_destroy(cpu);
    mla_context_destroy(cuda);
    return failures > 0;
}
#endif
