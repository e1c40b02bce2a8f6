/* SPDX-License-Identifier: Apache-2.0 */
/* mla tune: what measuring (tune.c), judging (regret.c) and the command (cli_tune.c) share. */
#ifndef MLA_TOOL_TUNE_H
#define MLA_TOOL_TUNE_H

#include "command.h"
#include "pool.h"
#include "timer.h"

#include "common/crossover.h"

enum { TUNE_SETTINGS = 64, TUNE_RUNS = 3 };

/* One curve: what does not change along it. */
struct tune_setting {
    const char *model, *cache;
    int64_t heads, topk;
};

struct tune {
    const struct command *command;
    struct compute compute;
    const char *out, *json, *models, *heads, *caches, *dtype, *from, *fill;
    int64_t most_queries, most_keys, regret, seed;
    int64_t seconds; /* what measuring, and then --regret, may take; 0 = as long as it takes */
    /* running: */
    struct tune_setting settings[TUNE_SETTINGS];
    struct mla_route_curve *curves; /* of each setting */
    int num_settings;
    double limit; /* seconds of a run above which larger points are left out */
    double start;
    int64_t points, done, late; /* points of all grids, those behind us, those without time left */
    struct mla_pool *pool;
    struct mla_timer *timer;
    void (*save)(struct tune *t); /* called where the curves so far make a table; NULL = nobody */
};

/* "attend model=… heads=… topk=… batch=…" of a setting. */
void mla_tune_problem(const struct tune *t, const struct tune_setting *s, int64_t topk,
                      const char *batch, char *text, size_t bytes);
/* Interrupted, or no time left? */
bool mla_tune_over(const struct tune *t);
void mla_tune_watch(struct tune *t); /* the clock starts; an interrupt ends the measuring */
bool mla_tune_interrupted(void);     /* since then */

/* Has a curve a time of each route that it needs? */
bool mla_tune_whole(const struct mla_route_curve *curve);
/* Fills t->curves: a coarse grid of all settings first, then finer ones, until the time is
 * over. Curves without a time of a route that they need are dropped. */
mla_status mla_tune_measure(struct tune *t);

/* Random mixed batches: as routed, under every assignment of routes to requests, all sparse MQA,
 * batch-wide. Rows to text; *out: JSON of all, NULL if there is no memory. */
mla_status mla_tune_regret(struct tune *t, FILE *text, json_t **out);

#endif
