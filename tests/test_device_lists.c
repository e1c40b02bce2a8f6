/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
/* Layers that share their top-k indices (mla_tensors.same_lists): masks that an earlier run left in
 * the workspace are used again. Seen from outside: with the promise, a run whose lists have
 * meanwhile become nonsense gives the bits of the first one, and without it does not; where the
 * mask cannot be kept (several passes, several jobs, routes that read lists) the lists in hand
 * count. On a CUDA device, or with the word "model" on the functional model. Exit 77 = skipped,
 * with the reason. */
#include "common/kernel.h"
#include "common/tool/case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef MLA_WITH_CUDA
#include "support_cuda.h"
#endif

static mla_context *target;
static int failures, checks;

static inline __attribute__((unused)) bool on_cuda(void)
{
    return target->backend == MLA_BACKEND_CUDA;
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

static void *room(size_t bytes)
{
#ifdef MLA_WITH_CUDA
    if (on_cuda())
        return device(bytes);
#endif
    return grab(bytes);
}

static void put(void *to, const void *from, size_t bytes)
{
#ifdef MLA_WITH_CUDA
    if (on_cuda()) {
        CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
        return;
    }
#endif
    memcpy(to, from, bytes);
}

static void get(void *to, const void *from, size_t bytes)
{
#ifdef MLA_WITH_CUDA
    if (on_cuda()) {
        CUDA(cudaDeviceSynchronize());
        download(to, from, bytes);
        return;
    }
#endif
    memcpy(to, from, bytes);
}

static void drop(void *p)
{
#ifdef MLA_WITH_CUDA
    if (on_cuda()) {
        CUDA(cudaFree(p));
        return;
    }
#endif
    free(p);
}

/* Inputs of a case in the target's memory. */
static mla_tensors place(const struct mla_case *k)
{
#ifdef MLA_WITH_CUDA
    if (on_cuda()) {
        struct device_inputs d = {0};
        load_inputs(&d, k);
        return d.tensors; /* freed with the process */
    }
#endif
    return k->tensors;
}

/* routes: of each request, and only the first one's rows are looked at; NULL: route for all. */
static void check(const char *text, mla_route route, const mla_route *routes, size_t limit,
                  bool kept)
{
    struct mla_case_spec spec;
    struct mla_case k;
    mla_plan *plan;
    must(mla_case_spec_parse(&spec, text));
    must(mla_case_make(&spec, &k));
    mla_problem_release(&spec.problem);
    mla_problem *p = &k.problem;
    p->out_dtype = MLA_BF16;
    p->wants_lse = p->wants_max_logits = false;
    const mla_plan_options options = {.route = route,
                                      .routes = routes,
                                      .workspace_limit_bytes = limit};
    must(mla_plan_create(target, p, &options, &plan));
    mla_tensors t = place(&k);
    size_t bytes = mla_plan_workspace_bytes(plan);
    size_t out_bytes = (size_t)(mla_total_q(p) * p->heads_q * mla_d_v(p)) * 2;
    size_t seen =
        routes ? out_bytes / (size_t)mla_total_q(p) * (size_t)p->cu_seqlens_q[1] : out_bytes;
    size_t list_bytes = (size_t)(mla_total_q(p) * p->topk) * 4;
    void *workspace = room(bytes), *lists = room(list_bytes), *nonsense = grab(list_bytes);
    char *out[4];
    t.out.data = room(out_bytes);
    put(lists, k.tensors.topk_indices.data, list_bytes);
    t.topk_indices.data = lists;
    memset(nonsense, 0, list_bytes); /* every entry the request's first key */
    for (int64_t i = 0; i < mla_total_q(p); i++)
        for (int64_t e = 1; e < p->topk; e++)
            ((int32_t *)nonsense)[i * p->topk + e] = -1;
    for (int i = 0; i < 4; i++) {
        /* 0: true lists. 1: the same, promised. 2: nonsense, promised. 3: nonsense. */
        t.same_lists = i == 1 || i == 2;
        if (i == 2)
            put(lists, nonsense, list_bytes);
        must(mla_run(plan, &t, workspace, bytes, NULL));
        out[i] = grab(out_bytes);
        get(out[i], t.out.data, out_bytes);
    }
    bool again = memcmp(out[0], out[1], seen) == 0;
    bool reused = memcmp(out[0], out[2], seen) == 0;
    bool read = memcmp(out[3], out[2], seen) == 0;
    bool ok = again && reused == kept && read == !kept && memcmp(out[0], out[3], seen) != 0;
    checks++;
    failures += !ok;
    if (!ok)
        printf("FAILED %s (limit %zu): again %d, reused %d, want %d\n", text, limit, again, reused,
               kept);
    for (int i = 0; i < 4; i++)
        free(out[i]);
    drop(t.out.data);
    drop(workspace);
    drop(lists);
    free(nonsense);
    mla_plan_destroy(plan);
    mla_case_free(&k);
}

int main(int argc, char **argv)
{
    bool model = argc > 1 && strcmp(argv[1], "model") == 0;
    const mla_context_options options = {model ? MLA_BACKEND_MODEL : MLA_BACKEND_CUDA, 0, 0};
    if (mla_context_create(&options, &target) != MLA_OK) {
        printf("skipped: %s\n", mla_last_error());
        return 77;
    }
    const char *expanded =
        "attend form=expanded heads=2 batch=q150s200,q3s90 nope=32 rope=16 v=64 topk=20 lse=0";
    const char *latent = "attend heads=2 nope=32 rope=64 v=32 batch=q20s70,q3s90 topk=20 lse=0";
    check(expanded, MLA_ROUTE_MASKED_MHA, NULL, 0, true);
    check(expanded, MLA_ROUTE_MASKED_MHA, NULL, 4096, false); /* passes of one tile */
    check(latent, MLA_ROUTE_MASKED_MHA, NULL, 0, true);
    check(latent, MLA_ROUTE_SPARSE_MQA, NULL, 0, false);
    /* Beside another route: in places of their own, unless memory is limited. */
    const mla_route both[] = {MLA_ROUTE_MASKED_MHA, MLA_ROUTE_SPARSE_MQA};
    check(latent, MLA_ROUTE_AUTO, both, 0, true);
    check(latent, MLA_ROUTE_AUTO, both, (size_t)1 << 30, false);
    printf("same lists: %d checks, %d failed\n", checks, failures);
    mla_context_destroy(target);
    return failures > 0;
}
