/* SPDX-License-Identifier: Apache-2.0 */
// labels: model
// timeout: 300
/* mla/index.h in the functional model: the indexer's kernels of sm_100, sm_90 and sm_80, and the
 * selection that they share, beside the CPU under several schedules. Lists are exact for the
 * device's own scores, scores are within the bound of docs/index.md, and where no sum rounds all is
 * bit-equal.
 *
 *   test_model_index                    all shapes; sm_100 under every schedule
 *   test_model_index SHAPE [SCHEDULE]   one shape; with a schedule on sm_100, or on MLA_MODEL_SM
 *   test_model_index mutants [N]        every INDEX_MUTANT of mutants.def in cuda/sm90 and sm100
 *                                       must be caught
 */
#define _GNU_SOURCE
#include <stdio.h>

#ifndef MLA_WITH_MODEL
int main(void)
{
    printf("skipped: this build has no functional model\n");
    return 77;
}
#else

#define MLA_TEST_MODEL
#include "device_index.h"

#include <sys/wait.h>
#include <unistd.h>

/* Small, and yet: both groups and one, every padded width, odd tails, holes, NaN, ranges that see
 * nothing, parts of the keys, and buffers that fill more than once. */
static const struct shape shapes[] = {
    SHAPE("v3.2", 64, 128, F8, F8, .query_len = {9}, .seq_len = {700}, .topk = 50, .causal = true),
    SHAPE("select", 64, 128, F8, F8, .query_len = {9}, .seq_len = {3500}, .topk = 128),
    SHAPE("select tile", 64, 128, F8, F8, .query_len = {9}, .seq_len = {6500}, .topk = 90),
    SHAPE("tile ties", 20, 128, F8, F8, .batch = 2, .query_len = {16, 17}, .seq_len = {300, 5000},
          .page_size = 48, .topk = 70, .causal = true, .holes = true, .exact = true),
    SHAPE("short tiles", 64, 128, F8, F8, .query_len = {40}, .seq_len = {150}, .topk = 30,
          .causal = true),
    SHAPE("long tile", 8, 64, F8, F8, .query_len = {9}, .seq_len = {14000}, .topk = 90),
    SHAPE("select ties", 40, 128, F8, F8, .query_len = {3}, .seq_len = {6000}, .topk = 90,
          .exact = true),
    SHAPE("decode paged", 64, 128, F8, F8, .batch = 3, .query_len = {1, 1, 2},
          .seq_len = {4300, 10, 300}, .page_size = 64, .topk = 70, .causal = true, .exact = true),
    SHAPE("holes", 64, 128, F8, F8, .batch = 4, .query_len = {2, 0, 1, 3},
          .seq_len = {500, 50, 0, 300}, .page_size = 48, .topk = 300, .causal = true, .holes = true,
          .nan = true),
    SHAPE("odd pages", 32, 96, F8, F8, .batch = 3, .query_len = {1, 13, 5},
          .seq_len = {200, 260, 77}, .page_size = 7, .topk = 33, .causal = true, .holes = true,
          .pad = 3),
    SHAPE("ranges", 16, 128, F8, F8, .query_len = {18}, .seq_len = {400}, .topk = 40,
          .ranges = true, .exact = true),
    SHAPE("heads 100", 100, 128, F8, F8, .query_len = {5}, .seq_len = {300}, .topk = 64,
          .exact = true),
    SHAPE("heads 200", 200, 64, F8, F8, .query_len = {3}, .seq_len = {260}, .topk = 64,
          .exact = true),
    SHAPE("bf16", 64, 128, B16, B16, .query_len = {5}, .seq_len = {500}, .topk = 64),
    SHAPE("bf16 tiles", 64, 128, B16, B16, .query_len = {21}, .seq_len = {600}, .topk = 40),
    SHAPE("bf16 odd", 20, 37, B16, B16, .query_len = {9}, .seq_len = {300}, .topk = 64,
          .exact = true, .pad = 1),
    SHAPE("bf16 q, fp8 k", 128, 96, B16, F8, .query_len = {3}, .seq_len = {200}, .topk = 64,
          .exact = true),
    SHAPE("fp8 q, bf16 k", 3, 128, F8, B16, .query_len = {9}, .seq_len = {200}, .topk = 64,
          .exact = true),
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static const struct shape *find(const char *name)
{
    for (int i = 0; i < SHAPES; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    printf("shape %s: not known\n", name);
    exit(1);
}

static void open_contexts(const char *sm, const char *schedule)
{
    setenv("MLA_MODEL_SM", sm, 1);
    setenv("MLA_MODEL_SCHEDULE", schedule, 1);
    setenv("MLA_MODEL_SMS", strcmp(schedule, "eager") == 0 ? "4" : "2", 1); /* tasks a block */
    mla_context_options options = {MLA_BACKEND_MODEL, 0, 0};
    OK(mla_context_create(&options, &cuda));
    OK(mla_context_create(NULL, &cpu));
}

static void close_contexts(void)
{
    mla_context_destroy(cpu);
    mla_context_destroy(cuda);
}

/* In a process of its own, since a wrong kernel may end it or never end; true if all was right. */
static bool right_alone(const struct shape *s, const char *sm, const char *schedule,
                        const char *mutant)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
            _exit(2);
        alarm(60);
        setenv("MLA_MODEL_MUTANT", mutant, 1);
        open_contexts(sm, schedule);
        index_kernel = strcmp(sm, "90") == 0 ? "index_logits_sm90" : "index_logits_sm100";
        check_shape(s);
        _exit(failures > 0);
    }
    int status = 1;
    if (child < 0 || waitpid(child, &status, 0) != child)
        exit(1);
    return status == 0;
}

struct mutant {
    const char *sm, *stem;
    int number;
    const char *what, *shape;
};

#define MUTANT(...)
#define SURVIVES(...)
static const struct mutant mutants[] = {
#define INDEX_MUTANT(stem, number, what, shape) {"100", #stem, number, what, shape},
#include "cuda/sm100/mutants.def"
#undef INDEX_MUTANT
#define INDEX_MUTANT(stem, number, what, shape) {"90", #stem, number, what, shape},
#include "cuda/sm90/mutants.def"
};
enum { MUTANTS = sizeof mutants / sizeof *mutants };

static int check_mutants(int only)
{
    static const char *const schedules[] = {"eager", "late", "random:1", "random:2"};
    int missed = 0;
    for (int i = 0; i < MUTANTS; i++) {
        const struct mutant *m = &mutants[i];
        char name[40];
        const char *caught = NULL;
        if (only && m->number != only)
            continue;
        snprintf(name, sizeof name, "%s:%d", m->stem, m->number);
        for (int k = 0; k < 4 && !caught; k++) {
            if (!right_alone(find(m->shape), m->sm, schedules[k], ""))
                printf("FAIL the right kernel on %s, %s\n", m->shape, schedules[k]), missed++;
            if (!right_alone(find(m->shape), m->sm, schedules[k], name))
                caught = schedules[k];
        }
        missed += !caught;
        printf("%s sm_%s %s:%d: %s: %s\n", caught ? "ok  " : "FAIL", m->sm, m->stem, m->number,
               m->what, caught ? caught : "not caught");
    }
    return missed > 0;
}

int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : NULL;
    brief = true;
    if (only && strcmp(only, "mutants") == 0)
        return check_mutants(argc > 2 ? atoi(argv[2]) : 0);
    static const struct {
        const char *sm, *schedule, *kernel;
    } runs[] = {
        {"100", "eager", "index_logits_sm100"},    {"100", "late", "index_logits_sm100"},
        {"100", "random:1", "index_logits_sm100"}, {"100", "random:2", "index_logits_sm100"},
        {"100", "random:3", "index_logits_sm100"}, {"90", "late", "index_logits_sm90"},
        {"90", "random:2", "index_logits_sm90"},   {"80", "eager", "index_logits_any"},
    };
    const char *wanted = getenv("MLA_MODEL_SM"), *schedule_wanted = argc > 2 ? argv[2] : NULL;
    for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
        const char *schedule = schedule_wanted ? schedule_wanted : runs[r].schedule;
        if (schedule_wanted && strcmp(runs[r].sm, wanted ? wanted : "100") != 0)
            continue;
        open_contexts(runs[r].sm, schedule);
        index_kernel = runs[r].kernel;
        for (int i = 0; i < SHAPES; i++)
            if (!only || strcmp(only, shapes[i].name) == 0)
                check_shape(&shapes[i]);
        if (!only && r == 0)
            for (enum scores kind = RANDOM; kind < KINDS; kind++)
                check_topk(kind, 5, 3000, 90, MLA_TOPK_BY_SCORE, kind % 3, 5, true);
        close_contexts();
        printf("sm_%s %s: %d checks, %d failed; largest share of the score bound %.3f\n",
               runs[r].sm, schedule, checks, failures, worst_share);
        fflush(stdout);
        if (schedule_wanted)
            break;
    }
    return failures > 0;
}
#endif
