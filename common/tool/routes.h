/* SPDX-License-Identifier: Apache-2.0 */
/* mla bench --routes: every admissible route of a problem end to end, and pictures of it. */
#ifndef MLA_TOOL_ROUTES_H
#define MLA_TOOL_ROUTES_H

#include "command.h"
#include "device_case.h"

struct route_row {
    char *problem, *batch;                /* batch: the words after batch=, for labels */
    int64_t heads, query_len, seq_len_kv; /* sums over the requests */
    mla_route route;                      /* AUTO = as the library routes it */
    char kernel[64];
    double median, least, most; /* seconds, L2 flushed before each run where there is a device */
    double warm;                /* back to back; 0 on the CPU */
    double flop, bytes;
    struct mla_case_part parts[MLA_CASE_PARTS];
    int num_parts;
};

struct route_bench {
    const struct command *command;
    struct compute *compute;
    const char *routes; /* "all" or a list */
    unsigned wanted;    /* MLA_BIT set, of routes */
    int64_t repeats;
    FILE *text;
    bool csv;
    struct route_row *rows;
    int count;
    int64_t batches_left; /* of the command line; for progress */
    double start;
    int64_t batches_done;
};

/* Reads the list. Exit status. */
int mla_route_bench_words(struct route_bench *b);
void mla_route_bench_legend(const struct route_bench *b);
/* Times a problem; after an interrupt does nothing, so that what was measured is still written. */
mla_status mla_route_bench_source(struct route_bench *b, const char *source);
bool mla_route_bench_interrupted(void);
json_t *mla_route_bench_json(const struct route_bench *b);
void mla_route_bench_free(struct route_bench *b);

/* FILE.html: time against length by route with crossovers, speed-up by heads and length, roofline,
 * in one file that needs nothing else. FILE.png: the first of these, by gnuplot. Exit status. */
int mla_route_plot(const struct route_bench *b, const char *about, const char *path);

#endif
