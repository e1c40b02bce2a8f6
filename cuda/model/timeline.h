/* SPDX-License-Identifier: Apache-2.0 */
/* The timeline of a launch: the events of its warps (trace.h) played back against the rates of an
 * SM's engines (rates.h). After a launch the table goes to stderr and, if MLA_MODEL_TIMELINE is not
 * "-", table and picture to the file of that name, as HTML. */
#ifndef MLA_CUDA_MODEL_TIMELINE_H
#define MLA_CUDA_MODEL_TIMELINE_H

#include "rates.h"
#include "trace.h"

#include <stdio.h>

/* One of each an SM; the last ones are pipes of its four schedulers. */
enum timeline_engine {
    ENGINE_TENSOR,
    ENGINE_SHARED,
    ENGINE_COPY,
    ENGINE_TMEM,
    ENGINE_MUFU,
    ENGINE_FMA,
    ENGINE_ALU,
    ENGINE_ISSUE,
    ENGINES
};
extern const char *const model_engine_names[ENGINES];

/* A stretch of time in which an engine or a warp of the drawn cluster was busy. */
struct timeline_bar {
    float from, to;
    uint16_t row;  /* ENGINES a block, then warps; see timeline.cc */
    uint8_t color; /* trace_kind for warps */
    int line;      /* for warps */
};

struct timeline_picture {
    struct timeline_bar *bars;
    int num_bars, room_bars;
    int blocks, warps; /* warps of a block */
    double clocks;
    const char *roles[MODEL_MAX_CLUSTER * 32];
};

enum { TIMELINE_ROLES = 24, TIMELINE_WAITS = 256 };

struct role_sums {
    const char *name;
    double warps, working, waiting, work[PIPES];
    double tensor, operands, wavefronts, conflicts, tmem, copied, far;
};

struct wait_sums { /* of a role at a line, by who ended them */
    const char *role, *by;
    int line;
    const char *file;
    uint8_t kind, by_kind;
    double clocks;
};

/* What the clusters of a launch come to. */
struct timeline_sums {
    struct role_sums roles[TIMELINE_ROLES];
    int num_roles;
    struct wait_sums waits[TIMELINE_WAITS];
    int num_waits;
    double busy[ENGINES], clocks, longest, middle_clocks, middle_tensor;
    double *cluster_clocks;
    int num_clusters, room_clusters;
    uint64_t events, weighted;
};
extern struct timeline_sums model_timeline_sums;

void model_timeline_begin(const char *kernel);
/* After a cluster has run. */
void model_timeline_cluster(void);
void model_timeline_end(const char *kernel, uint64_t clusters, int blocks);

/* timeline_table.cc */
const struct model_rates *model_timeline_rates(void); /* of the modelled GPU, or NULL */
struct role_sums *model_timeline_role(const char *name);
void model_timeline_table(FILE *f, const char *kernel, uint64_t clusters, int blocks,
                          const struct model_rates *rates, double far_part);

/* timeline_draw.cc */
void model_timeline_draw(const char *path, bool first, const char *title, const char *table,
                         const struct timeline_picture *picture);

/* Instructions that a kernel's code has in front of an event, by line of source (weights.cc). False
 * if nothing is known of it. */
void model_weights_read(const char *kernel);
bool model_weights_find(const struct trace_event *ev, uint32_t work[PIPES]);
const char *model_weights_source(void); /* for the table's first line */

#endif
