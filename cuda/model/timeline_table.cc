/* SPDX-License-Identifier: Apache-2.0 */
/* The timeline's rates and sums, and the table made of them. */
#include "timeline.h"

#include <stdlib.h>
#include <string.h>

const char *const model_engine_names[ENGINES] = {"tensor core", "shared port", "copies (L2, HBM)",
                                                 "tmem ld, st", "MUFU",        "FMA",
                                                 "ALU",         "issue"};

struct timeline_sums model_timeline_sums;

struct role_sums *model_timeline_role(const char *name)
{
    if (name == NULL)
        name = "-";
    for (int i = 0; i < model_timeline_sums.num_roles; i++)
        if (strcmp(model_timeline_sums.roles[i].name, name) == 0)
            return &model_timeline_sums.roles[i];
    if (model_timeline_sums.num_roles == TIMELINE_ROLES)
        return &model_timeline_sums.roles[TIMELINE_ROLES - 1];
    model_timeline_sums.roles[model_timeline_sums.num_roles].name = name;
    return &model_timeline_sums.roles[model_timeline_sums.num_roles++];
}

/* MLA_MODEL_RATES=name=value,...: what if. */
static struct model_rates changed_rates;
static void change_rates(void)
{
#define RATE(name)                                                                                 \
    {                                                                                              \
#name, &changed_rates.name                                                                 \
    }
    static const struct {
        const char *name;
        double *value;
    } names[] = {RATE(ghz),    RATE(fma),       RATE(fma2),     RATE(alu),      RATE(mufu),
                 RATE(shared), RATE(tmem_ld),   RATE(tmem_st),  RATE(near),     RATE(far),
                 RATE(warp),   RATE(box),       RATE(ld),       RATE(shuffle),  RATE(vote),
                 RATE(tmem),   RATE(tensor),    RATE(commit),   RATE(arrive),   RATE(remote),
                 RATE(wake),   RATE(near_wait), RATE(far_wait), RATE(mma_sync), RATE(bar),
                 RATE(atomic), RATE(fence),     RATE(load)};
#undef RATE
    for (const char *text = getenv("MLA_MODEL_RATES"); text != NULL && *text != '\0';) {
        size_t length = strcspn(text, "=,"), i = 0, count = sizeof names / sizeof *names;
        while (i < count &&
               (strlen(names[i].name) != length || strncmp(names[i].name, text, length) != 0))
            i++;
        if (i == count || text[length] != '=')
            fprintf(stderr, "timeline: MLA_MODEL_RATES: no rate '%.*s'\n", (int)length, text);
        else
            *names[i].value = atof(text + length + 1);
        text += strcspn(text, ",");
        text += *text == ',';
    }
}

const struct model_rates *model_timeline_rates(void)
{
    for (size_t i = 0; i < sizeof model_rates / sizeof *model_rates; i++)
        if (model_rates[i].sm == model_device.sm) {
            changed_rates = model_rates[i];
            change_rates();
            return &changed_rates;
        }
    return NULL;
}

/* Clusters go to the first SMs that are free; each SM holds one block. */
static double whole_launch(int blocks)
{
    int slots = model_device.processors / blocks;
    slots = slots < 1 ? 1 : slots > 1024 ? 1024 : slots;
    static double ends[1024];
    double last = 0;
    memset(ends, 0, sizeof ends);
    for (int i = 0; i < model_timeline_sums.num_clusters; i++) {
        int first = 0;
        for (int s = 1; s < slots; s++)
            if (ends[s] < ends[first])
                first = s;
        ends[first] += model_timeline_sums.cluster_clocks[i];
        last = ends[first] > last ? ends[first] : last;
    }
    return last;
}

static int by_clocks(const void *a, const void *b)
{
    double x = ((const struct wait_sums *)a)->clocks, y = ((const struct wait_sums *)b)->clocks;
    return x < y ? 1 : x > y ? -1 : 0;
}

static const char *kind_name(int kind)
{
    switch (kind) {
    case TRACE_WAIT:
        return "barrier";
    case TRACE_WGMMA:
    case TRACE_WGMMA_WAIT:
        return "wgmma";
    case TRACE_UMMA_COMMIT:
        return "commit";
    case TRACE_COPY_IN:
    case TRACE_COPY_OUT:
    case TRACE_BULK_WAIT:
        return "bulk copy";
    case TRACE_ASYNC:
    case TRACE_ASYNC_WAIT:
    case TRACE_ASYNC_ARRIVE:
        return "cp.async";
    default:
        return "arrive";
    }
}

void model_timeline_table(FILE *f, const char *kernel, uint64_t clusters, int blocks,
                          const struct model_rates *rates, double far_part)
{
    double per_block = model_timeline_sums.clocks > 0 ? model_timeline_sums.clocks : 1,
           launch = whole_launch(blocks);
    int most = 0;
    fprintf(f,
            "timeline of %s\nrates of %s at %.3f GHz; %llu clusters of %d blocks, a block an SM; "
            "%s, in front of %.0f %% of the events\n",
            kernel, rates->name, rates->ghz, (unsigned long long)clusters, blocks,
            model_weights_source(),
            model_timeline_sums.events
                ? 100 * (double)model_timeline_sums.weighted / (double)model_timeline_sums.events
                : 0);
    fprintf(f,
            "cluster: mean %.0f clocks, longest %.0f; launch on %d SMs %.0f clocks, %.1f us; "
            "%.0f %% of what is copied in comes from HBM\n",
            model_timeline_sums.clocks / blocks / model_timeline_sums.num_clusters,
            model_timeline_sums.longest, model_device.processors, launch, launch / rates->ghz / 1e3,
            100 * far_part);
    fprintf(f, "%-18s %14s %7s\n", "engine", "busy clocks", "busy");
    for (int e = 0; e < ENGINES; e++) {
        fprintf(f, "%-18s %14.0f %6.1f%%\n", model_engine_names[e], model_timeline_sums.busy[e],
                100 * model_timeline_sums.busy[e] / per_block);
        if (model_timeline_sums.busy[e] > model_timeline_sums.busy[most])
            most = e;
    }
    if (model_timeline_sums.middle_clocks > 0)
        fprintf(f, "tensor core in the middle half of its work: %.1f%% busy\n",
                100 * model_timeline_sums.middle_tensor / model_timeline_sums.middle_clocks);
    fprintf(f, "binds: %s, %.1f%% busy%s\n", model_engine_names[most],
            100 * model_timeline_sums.busy[most] / per_block,
            model_timeline_sums.busy[most] < 0.8 * per_block ? "; the rest is waiting (below)"
                                                             : "");
    fprintf(f, "%-12s %5s %6s %6s %9s %9s %9s %9s %9s %9s %9s %8s %9s %9s %9s\n", "role", "warps",
            "work", "wait", "issue", "FMA", "ALU", "MUFU", "tensor", "operand B", "port", "confl.",
            "tmem B", "copied B", "of it HBM");
    for (int i = 0; i < model_timeline_sums.num_roles; i++) {
        const struct role_sums *r = &model_timeline_sums.roles[i];
        double time = r->working + r->waiting, issue = 0;
        for (int k = 0; k < PIPE_LOAD; k++)
            issue += r->work[k];
        fprintf(f,
                "%-12s %5.0f %5.0f%% %5.0f%% %9.3g %9.3g %9.3g %9.3g %9.3g %9.3g %9.3g %8.2g %9.3g "
                "%9.3g %9.3g\n",
                r->name, r->warps, time > 0 ? 100 * r->working / time : 0,
                time > 0 ? 100 * r->waiting / time : 0, issue,
                r->work[PIPE_FMA] + 2 * r->work[PIPE_FMA2], r->work[PIPE_ALU], r->work[PIPE_MUFU],
                r->tensor, r->operands, r->wavefronts, r->conflicts, r->tmem, r->copied, r->far);
    }
    qsort(model_timeline_sums.waits, (size_t)model_timeline_sums.num_waits,
          sizeof *model_timeline_sums.waits, by_clocks);
    fprintf(f, "waits, share of the role's time (ended by)\n");
    for (int i = 0, shown = 0; i < model_timeline_sums.num_waits && shown < 16; i++) {
        const struct wait_sums *w = &model_timeline_sums.waits[i];
        const struct role_sums *r = model_timeline_role(w->role);
        double share = w->clocks / (r->working + r->waiting);
        if (share < 0.01)
            continue;
        const char *slash = strrchr(w->file, '/');
        fprintf(f, "  %-12s %5.1f%%  %s at %s:%d (%s of %s)\n", w->role, 100 * share,
                kind_name(w->kind), slash ? slash + 1 : w->file, w->line, kind_name(w->by_kind),
                w->by);
        shown++;
    }
}
