/* SPDX-License-Identifier: Apache-2.0 */
/* mla bench --routes: every admissible route of a problem end to end and by part, and pictures of
 * it. */
#ifndef MLA_TOOL_ROUTES_H
#define MLA_TOOL_ROUTES_H

#include "command.h"
#include "pool.h"
#include "timer.h"

/* What a row times: a route forced on every request, or one of these. */
enum route_way {
    WAY_FORCED,
    WAY_AUTO,       /* as the library routes each request */
    WAY_BATCH_WIDE, /* one route for all prefills, that of the longest; decodes sparse MQA */
    WAY_INDEXER     /* mla_index_run of the same requests */
};

struct route_row {
    char *problem, *batch;                /* batch: the words after batch=, for labels */
    int64_t source;                       /* number of the problem on the command line */
    int order;                            /* of measuring */
    int64_t heads, query_len, seq_len_kv; /* lengths are sums over the requests */
    int64_t requests, topk;
    const char *cache;
    char fill[16];
    enum route_way way;
    mla_route route; /* AUTO unless forced */
    char kernel[96];
    struct mla_times cold, warm; /* seconds; warm 0 on the CPU */
    /* Cold medians where lists are those of the run before, and of runs in turns with these where
     * they are not; 0 = the plan makes nothing of lists. */
    double shared, unshared;
    int runs;
    double flop, bytes;
    struct mla_timer_part parts[MLA_TIMER_PARTS];
    int num_parts;
};

struct route_bench {
    const struct command *command;
    struct compute *compute;
    const char *routes; /* "all" or a list */
    unsigned wanted;    /* MLA_BIT set, of routes; AUTO: as routed */
    bool batch_wide, indexer;
    int64_t repeats, seconds; /* seconds: what all may take; 0 = as long as it takes */
    FILE *text;
    bool csv;
    struct route_row *rows;
    int count;
    char **sources; /* problem strings and files */
    int64_t num_sources, done;
    double start;
    struct mla_pool *pool;
    struct mla_timer *timer;
    void (*save)(void *user); /* called after each problem; NULL = nobody */
    void *user;
};

/* Reads the list. Exit status. */
int mla_route_bench_words(struct route_bench *b);
/* Copies source. MLA_ERR_MEMORY. */
mla_status mla_route_bench_add(struct route_bench *b, const char *source);
/* Times all sources; after an interrupt, or when the time is over, stops, so that what was measured
 * is still written. Rows are then in the order of the sources. */
mla_status mla_route_bench_run(struct route_bench *b);
/* Rows that an earlier run wrote as JSON, for pictures; *about: its context. Exit status. */
int mla_route_bench_load(struct route_bench *b, const char *path, char *about, size_t bytes);
json_t *mla_route_bench_json(const struct route_bench *b);
void mla_route_bench_free(struct route_bench *b);
const char *mla_route_row_name(const struct route_row *row);

/* FILE.html: time against length by route with crossovers, speed-up by heads and length, roofline,
 * in one file that needs nothing else. FILE.svg: one of these, by the ending before it
 * (NAME.time.svg, NAME.heat.svg, NAME.roofline.svg; time without one). FILE.png: the first, by
 * gnuplot. Exit status. */
int mla_route_plot(const struct route_bench *b, const char *about, const char *path);

#endif
