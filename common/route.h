/* SPDX-License-Identifier: Apache-2.0 */
/* Which route a request takes, and why: a pure function of the problem, a table of rates and a
 * memory budget. No state, no device. */
#ifndef MLA_COMMON_ROUTE_H
#define MLA_COMMON_ROUTE_H

#include "mla/mla.h"

enum { MLA_ROUTES = MLA_ROUTE_DENSE_MQA + 1 };

/* Useful FLOP a second of each route at a head count, in any one unit: only ratios matter. Rows
 * ascend in heads_q; between them rates follow log(heads_q) linearly, beyond them they are held. */
struct mla_route_rate {
    int64_t heads_q;
    double rate[MLA_ROUTES]; /* by mla_route; [MLA_ROUTE_AUTO] is unused */
};

struct mla_route_curve;
struct mla_route_table {
    const char *name;
    int64_t num_rows;
    const struct mla_route_rate *rows;
    /* Of sparse MQA, where tile_heads > 0: FLOP, at rate 1, that take as long as gathering one byte
     * of the cache, and query heads that a gathered row is multiplied with at a time. */
    double gather_flop;
    int64_t tile_heads;
    /* Measured times; they go before rows wherever one has the problem's dims. crossover.h */
    int64_t num_curves;
    const struct mla_route_curve *curves;
};

/* Every route at the same rate, so that the fewest FLOP win. */
extern const struct mla_route_table mla_route_table_flop;
/* About what the CUDA kernels reach on an H100, as ratios, the gather of sparse MQA included
 * (docs/routing.md): for devices without a measured table. */
extern const struct mla_route_table mla_route_table_gpu;
/* The table of a backend where nothing was measured. */
const struct mla_route_table *mla_route_table_of(mla_backend backend);

struct mla_route_choice {
    mla_route route;
    const char *reason;          /* static text */
    double cost[MLA_ROUTES];     /* FLOP / rate; INFINITY where the route is not admissible */
    bool measured;               /* costs are seconds, of a curve of the table */
    double overhead[MLA_ROUTES]; /* measured: seconds that the request takes longer alone; a batch
                                    pays the largest of each job */
    int job[MLA_ROUTES];         /* whoever chooses kernels: requests of one route and number run
                                    together */
    int64_t rows_per_pass;       /* query rows whose mask fits the budget; at least 1 */
};

/* Bytes of mask that a masked-mha request may have in memory at once when the caller sets no
 * limit. */
#define MLA_DEFAULT_MASK_BYTES ((size_t)64 << 20)

/* lists_complete: every row is known to list every key it may see. budget 0 = the default. */
void mla_route_choose(const mla_problem *problem, int64_t query_len, int64_t seq_len_kv,
                      bool lists_complete, const struct mla_route_table *table, size_t budget,
                      struct mla_route_choice *out);

/* Once all requests of a batch have chosen: where times are measured, the set of routes that makes
 * the batch fastest, overheads included, and each request's best route of that set. choices: [n];
 * those with skip[i] (no query rows, or forced) keep their route. */
void mla_route_settle(struct mla_route_choice *choices, const bool *skip, int64_t n);

/* May this route compute the problem at all? If not, why names the reason as a clause. */
bool mla_route_admissible(const mla_problem *problem, mla_route route, bool lists_complete,
                          const char **why);

/* Query-key pairs that a row may see: all, and at most topk a row. */
double mla_pairs_dense(const mla_problem *problem, int64_t query_len, int64_t seq_len_kv);
double mla_pairs_listed(const mla_problem *problem, int64_t query_len, int64_t seq_len_kv);
/* FLOP of attention and projections, and bytes that must move at least, by this route. */
double mla_route_flop(const mla_problem *problem, mla_route route, int64_t query_len,
                      int64_t seq_len_kv);
double mla_route_bytes(const mla_problem *problem, mla_route route, int64_t query_len,
                       int64_t seq_len_kv);

#endif
