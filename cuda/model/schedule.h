/* SPDX-License-Identifier: Apache-2.0 */
/* Who runs next: between launch.cc, which sets a cluster up, and schedule.cc, which runs it. */
#ifndef MLA_CUDA_MODEL_SCHEDULE_H
#define MLA_CUDA_MODEL_SCHEDULE_H

#include "engine.h"

/* Lets the fibers of the cluster, numbered and started by the caller, run until all have exited.
 * False if the launch failed: model_error_text says why. */
bool model_run_cluster(struct model_fiber **fibers, int count);
/* Called by a fiber at its end. */
[[noreturn]] void model_exit_thread(void);

void model_ready(struct model_fiber *fiber);
/* Something happened that a thread which polls may wait for. */
void model_progress(void);
/* Sleeps until the queue is woken or nothing else can run: false then. */
bool model_sleep_timed(struct model_queue *queue, const char *what, const void *object,
                       void (*describe)(const void *object, char *text, size_t bytes),
                       struct model_at here);

struct model_fiber *model_fiber_of(int number); /* in the cluster */

/* Ops under way. */
struct model_op *model_op_of(uint16_t slot);
bool model_op_before(const struct model_op *first, const struct model_op *second);
void model_ops_drop(void); /* after a failure */
int model_op_slots(void);  /* slots are 1 to this */
/* The first op under way that touches the block's spaces, or NULL. reads: or reads them. */
struct model_op *model_op_on_block(const struct model_block *block);
/* Runs ops of the block's exempt kind that are left at its end. */
void model_ops_finish_exempt(const struct model_block *block);

/* What the shadow does (shared.cc). */
void model_marks_check(struct model_op *op);
void model_marks_set(struct model_op *op);
void model_marks_clear(struct model_op *op);

/* A row of 16 bytes for ldmatrix, checked where the block is (shared.cc). */
const unsigned char *model_matrix_row(uint32_t address, struct model_at at);

/* Ends of threads and blocks, seen by the barriers (barrier.cc). */
void model_barriers_thread_exit(struct model_fiber *fiber);
void model_barriers_begin(struct model_block *block);
void model_barriers_end(struct model_block *block);
void model_cluster_barrier_begin(void);

extern char model_error_text[2048];
extern const struct model_kernel *model_running_kernel;
void model_describe_fiber(const struct model_fiber *f, char *text, size_t bytes);
[[noreturn]] void model_deadlock(void);
/* Leaves the fiber, or the set-up, for model_run_cluster's caller. */
[[noreturn]] void model_abandon(void);

#endif
