/* SPDX-License-Identifier: Apache-2.0 */
/* Drawings of mla bench --routes as SVG. Each returns whether there was something to draw; with f
 * NULL it only says so. */
#ifndef MLA_BENCH_CHART_H
#define MLA_BENCH_CHART_H

#include "common/route.h"
#include "common/tool/routes.h"

/* Rows of equal requests that differ in nothing but length: heads, requests, topk, cache, fill, and
 * keys where they are not the query tokens themselves. */
struct chart_set {
    const struct route_row *first;
    int64_t keys; /* of a request; 0 = pure prefills */
};

/* One length of a set: tokens of a request, and its row of each route (NULL = not measured). */
struct chart_point {
    int64_t queries;
    const struct route_row *row[MLA_ROUTES]; /* [AUTO]: as routed */
};

enum { CHART_SETS = 64, CHART_POINTS = 128 };

int mla_chart_sets(const struct route_bench *b, struct chart_set *sets);
/* Points of a set, shortest first. */
int mla_chart_points(const struct route_bench *b, const struct chart_set *s,
                     struct chart_point *points);
/* "128 heads, 4 requests, prefill, bf16 cache, normal lists" */
void mla_chart_title(const struct chart_set *s, char *text, size_t bytes);
/* Query tokens at which sparse MQA becomes faster than masked MHA for good; 0 = nowhere here. */
double mla_chart_crossing(const struct chart_point *points, int n);
const char *mla_chart_colour(enum route_way way, mla_route route);

bool mla_chart_times(FILE *f, const struct route_bench *b, const char *about);
bool mla_chart_heat(FILE *f, const struct route_bench *b, const char *about);
bool mla_chart_roofline(FILE *f, const struct route_bench *b, const char *about);
bool mla_chart_mixed(FILE *f, const struct route_bench *b, const char *about);

#endif
