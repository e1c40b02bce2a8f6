/* SPDX-License-Identifier: Apache-2.0 */
/* Timing of plans where a context runs: memory there, and runs between events (CUDA) or by the
 * clock (CPU). Outputs are written, but nobody looks at them: what they hold is mla check's
 * business. */
#ifndef MLA_TOOL_TIMER_H
#define MLA_TOOL_TIMER_H

#include "mla/index.h"
#include "mla/mla.h"

/* ------------------------------------------------------------ backend memory */

/* Memory that a context's kernels read: device memory for CUDA, host memory else. MLA_ERR_MEMORY,
 * MLA_ERR_CUDA. */
mla_status mla_memory_new(const mla_context *context, size_t bytes, void **out);
void mla_memory_free(const mla_context *context, void *memory);
/* From the host; from memory of the same context, ranges that don't overlap. */
mla_status mla_memory_write(const mla_context *context, void *to, const void *host, size_t bytes);
mla_status mla_memory_copy(const mla_context *context, void *to, const void *from, size_t bytes);

/* ------------------------------------------------------------------- timing */

struct mla_timer;
mla_status mla_timer_new(const mla_context *context, struct mla_timer **out);
void mla_timer_free(struct mla_timer *t); /* NULL is accepted */

/* Makes plan of problem the one that is timed: room for its outputs and workspace, one run to warm
 * up. The plan, and what tensors point to, must live until the next plan. */
mla_status mla_timer_take(struct mla_timer *t, const mla_plan *plan, const mla_problem *problem,
                          const mla_tensors *tensors);
/* The same for an indexer call; its lists go to memory of the timer. */
mla_status mla_timer_take_index(struct mla_timer *t, const mla_index_args *args);

/* Tensors.same_lists from the next run on: the run before left what lists become. */
void mla_timer_same_lists(struct mla_timer *t, bool same);

/* Seconds of n runs, each behind a flush of the L2 cache (CPU: as they come). */
mla_status mla_timer_cold(struct mla_timer *t, int n, double *seconds);
/* Seconds of n runs back to back. */
mla_status mla_timer_warm(struct mla_timer *t, int n, double *seconds);

/* Device time of each part of one cold run (common/trace.h), summed by name; none on the CPU. */
enum { MLA_TIMER_PARTS = 8, MLA_TIMER_RUNS = 64 /* n of cold and warm */ };
struct mla_timer_part {
    const char *name;
    double seconds;
};
mla_status mla_timer_parts(struct mla_timer *t, struct mla_timer_part *parts, int *count);

/* Median, least and most of n > 0 times, which are sorted. */
struct mla_times {
    double median, least, most;
};
struct mla_times mla_times_of(double *seconds, int n);

#endif
