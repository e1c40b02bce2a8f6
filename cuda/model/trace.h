/* SPDX-License-Identifier: Apache-2.0 */
/* What the warps of a cluster did, for the timeline (timeline.h): a list of events a warp, in its
 * own order, with what each one waited for and what it set off. Written while the model runs, if
 * MLA_MODEL_TIMELINE is set; times come later, when the list is played back.
 *
 * An event is one instruction of a warp: lanes that come to the same instruction join the same
 * event. Whatever completes a barrier is an arrival at a phase, numbered over all barriers; a wait
 * names the phase it wants. */
#ifndef MLA_CUDA_MODEL_TRACE_H
#define MLA_CUDA_MODEL_TRACE_H

#include "engine.h"

enum trace_kind {
    TRACE_NONE,
    /* answered by the pipes of the SM */
    TRACE_LD,       /* ld.shared, ldmatrix: wavefronts */
    TRACE_ST,       /* st.shared: wavefronts */
    TRACE_SHUFFLE,  /* through the same port */
    TRACE_VOTE,     /* vote, reduce, match */
    TRACE_SYNCWARP, /* fences, too */
    TRACE_REMOTE,   /* shared memory of another block: bytes */
    TRACE_ATOMIC,   /* global memory */
    TRACE_MMA_SYNC, /* amount: clocks of the scheduler's tensor core */
    /* barriers */
    TRACE_ARRIVE, /* ctas 2: at another block */
    TRACE_WAIT,   /* until a phase is over */
    /* tensor cores */
    TRACE_WGMMA, /* amount: clocks of the scheduler's tensor core, bytes: read from shared memory */
    TRACE_WGMMA_COMMIT,
    TRACE_WGMMA_WAIT,  /* amount: groups that may be pending */
    TRACE_UMMA,        /* amount: clocks of the SM's tensor core; ctas */
    TRACE_UMMA_COPY,   /* tcgen05.cp */
    TRACE_UMMA_COMMIT, /* arrivals when all before has run */
    TRACE_TMEM_LD,     /* bytes */
    TRACE_TMEM_ST,
    TRACE_TMEM_WAIT_LD,
    TRACE_TMEM_WAIT_ST,
    /* copies */
    /* bytes; far: of them, first touched by this launch; amount: mask of a multicast; arrivals when
     * landed */
    TRACE_COPY_IN,
    TRACE_COPY_OUT, /* a bulk store */
    TRACE_BULK_COMMIT,
    TRACE_BULK_WAIT, /* amount: groups that may be pending */
    TRACE_ASYNC,     /* cp.async */
    TRACE_ASYNC_COMMIT,
    TRACE_ASYNC_WAIT,
    TRACE_ASYNC_ARRIVE, /* arrivals when all cp.async before have landed */
    TRACE_EXIT
};

/* Plain instructions, by the pipe they take. */
enum trace_pipe {
    PIPE_ISSUE,
    PIPE_FMA,
    PIPE_FMA2,
    PIPE_ALU,
    PIPE_MUFU,
    PIPE_LOAD,  /* from global memory: 512 bytes a warp; no issue slot of its own */
    PIPE_STALL, /* clocks of a warp alone, no instructions */
    PIPES
};

struct trace_arrival {
    uint32_t phase, count;
};

struct trace_event {
    struct trace_event *next;
    struct model_at at;
    const char *role;
    uint32_t lanes;
    uint8_t kind, ctas;
    uint16_t num_arrivals, room_arrivals;
    uint32_t phase; /* waited for; 0: none */
    uint32_t amount, bytes, far, wavefronts, conflicts;
    uint32_t work[PIPES]; /* since the event before: the most of any lane */
    uint32_t *address;    /* of each lane's access */
    struct trace_arrival *arrivals;
};

extern bool model_tracing;

/* Called by each lane; the event that it joins. Only if model_tracing. */
struct trace_event *model_trace(enum trace_kind kind, struct model_at at);
/* A lane's access to shared memory joins ev. */
void model_trace_access(struct trace_event *ev, uint32_t address, uint32_t bytes);
/* Fills in wavefronts and conflicts (beyond the least number of wavefronts). */
void model_trace_wavefronts(struct trace_event *ev);

/* Plain instructions of the running thread, in ptx functions. */
static inline void model_work(enum trace_pipe pipe, uint32_t instructions)
{
    if (model_tracing)
        model_self->work[pipe] += instructions;
}

/* Barriers: a number for each phase. An arrival belongs to the running op's event, or else to the
 * running thread's last. */
uint32_t model_trace_phase(void);
void model_trace_arrive(uint32_t phase, uint32_t count);
extern struct trace_event *model_trace_op; /* of the running op */
/* Bytes of global memory that ev moves. */
void model_trace_global(struct trace_event *ev, const void *at, uint32_t bytes);

/* One launch, and the clusters in it. */
void model_trace_begin(void);
void model_trace_cluster_begin(void);
extern uint32_t model_trace_phases; /* phases 1 to this in the cluster's events */
/* Room beside the events, and how much they have; all of it is given back at once. */
void *model_trace_room(size_t bytes);
size_t model_trace_bytes(void);
void model_trace_forget(void);

#endif
