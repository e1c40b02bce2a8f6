/* SPDX-License-Identifier: Apache-2.0 */
/* Measured route times as data: what `mla tune` writes, MLA_CROSSOVERS or
 * mla_context_load_crossovers load, and routing reads; tables of some devices are built in
 * (common/crossovers).
 *
 * A curve holds one setting (heads, dims, cache format, q dtype, topk): for every route two grids
 * over (query tokens, keys before them), as rates, useful FLOP a second: of a request that is one
 * more in a batch which keeps the device busy, and of one alone. A job of a batch takes
 *     sum of (one more) + largest (alone - one more)
 * so that one request takes its time alone, and many the sum of what each adds. Between grid points
 * log(rate) is linear in log2(queries) and log2(keys + 64); beyond the grid it is held. Between
 * curves that differ in heads alone, it is linear in log(heads). So cost has no steps anywhere. */
#ifndef MLA_COMMON_CROSSOVER_H
#define MLA_COMMON_CROSSOVER_H

#include "kernel.h"
#include "route.h"

enum { MLA_CURVE_POINTS = 16, MLA_CURVES = 256 };

struct mla_route_curve {
    int64_t heads_q, kv_lora_rank, qk_nope_dim, qk_rope_dim, v_dim, topk;
    mla_dtype q_dtype;
    mla_cache_format cache_format;
    int num_queries, num_contexts;
    int64_t queries[MLA_CURVE_POINTS], contexts[MLA_CURVE_POINTS]; /* ascending */
    /* FLOP a second; 0 where nothing was measured. */
    double more[MLA_ROUTES][MLA_CURVE_POINTS][MLA_CURVE_POINTS];
    double alone[MLA_ROUTES][MLA_CURVE_POINTS][MLA_CURVE_POINTS];
};

/* The problem that a curve speaks of, but for its lengths. */
void mla_curve_problem(const struct mla_route_curve *curve, mla_problem *problem);
/* Gives points without a time the rate between their measured neighbours in query tokens, or else
 * of the nearest one. False, with a sentence fragment in why, if a route has no time at all. */
bool mla_curve_fill(struct mla_route_curve *curve, char *why, size_t bytes);

/* Curves of the same dims (kv_lora_rank, qk_nope_dim, qk_rope_dim, v_dim) as the problem, those
 * nearest in q dtype, cache format and topk, in that order of weight: seconds of one more request
 * by a route, and what it takes longer alone. False if no curve has these dims. */
bool mla_curves_cost(const struct mla_route_table *table, const mla_problem *problem,
                     mla_route route, int64_t query_len, int64_t seq_len_kv, double *seconds,
                     double *overhead);

/* Text of a table, ending with a newline: see docs/files.md. NULL if there is no memory. */
char *mla_crossovers_text(const mla_context *context, const struct mla_route_curve *curves,
                          int count);
/* Reads a file for this context. MLA_ERR_IO, MLA_ERR_MEMORY; MLA_ERR_ARGUMENT with the line, also
 * for a table of another device or version. */
mla_status mla_crossovers_read(const mla_context *context, const char *path,
                               struct mla_route_table **out);
/* The same of a text that is built in: its second line is not looked at. */
mla_status mla_crossovers_parse(const mla_context *context, const char *text,
                                struct mla_route_table **out);
/* Texts of common/crossovers, NULL at the end. */
extern const char *const mla_crossovers_built_in[];
void mla_crossovers_free(struct mla_route_table *table);
/* At the opening of a context: what MLA_CROSSOVERS names, if it is for this kind of backend, or
 * else the built-in table of this device, if there is one. MLA_CROSSOVERS set to nothing: none. */
mla_status mla_crossovers_find(mla_context *context);

#endif
