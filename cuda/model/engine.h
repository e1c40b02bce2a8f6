/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the functional model: threads as fibers, memory with a shadow, and asynchronous work. Who
 * models an instruction needs this header; kernels never see it.
 *
 * Time. One cluster of blocks runs at a time, in one OS thread; its threads are fibers that switch
 * only inside model functions. What hardware does behind a thread's back (a copy, an MMA, a commit,
 * a remote arrive) is a model_op: issued by a thread, run later, when the schedule says (enum
 * model_schedule). The ranges that an op reads and writes are marked from issue until it has run,
 * and every access in between is checked against the marks.
 *
 * Errors. model_fail() ends the launch with one sentence and does not return. Whoever is at work is
 * named: the running thread, or the thread that issued the running op. */
#ifndef MLA_CUDA_MODEL_ENGINE_H
#define MLA_CUDA_MODEL_ENGINE_H

#include "device.h"
#include "fiber.h"

#include <stddef.h>
#include <stdint.h>

enum {
    MODEL_MAX_CLUSTER = 16,
    MODEL_MAX_THREADS = 1024,
    MODEL_SHARED_BASE = 1024, /* what a block's shared addresses start at: CUDA keeps 1 KB */
    MODEL_RANK_SHIFT = 24     /* rank in a shared::cluster address */
};

struct model_op;
struct model_block;

/* ------------------------------------------------------------------ memory with a shadow */

/* Bytes that threads and ops share: shared memory of a block; tensor memory too, as lane * 2048 +
 * column * 4. One shadow entry a byte. */
struct model_space {
    const char *name; /* "shared memory" */
    struct model_block *block;
    uint32_t bytes, base; /* base is added to offsets in reports */
    unsigned char *data;
    unsigned char *known; /* MODEL_WRITTEN, MODEL_BARRIER */
    uint16_t *reading;    /* how many ops under way read it */
    uint16_t *writing;    /* slot of the op under way that writes it; 0 = none */
    uint32_t *writer;     /* who wrote it last without a proxy fence since (see model_fresh) */
    uint32_t *landing;    /* if that was cp.async: its number among all that landed; else 0 */
};

enum { MODEL_WRITTEN = 1, MODEL_BARRIER = 2 };

/* Zeroed but for names; freed by model_space_close. */
void model_space_open(struct model_space *space, const char *name, struct model_block *block,
                      uint32_t bytes, uint32_t base);
void model_space_reset(struct model_space *space); /* contents unknown, nothing under way */
void model_space_close(struct model_space *space);

/* Checks of an access by the running thread: every byte inside, known if read, not being written,
 * not being read if written. what: "ld.shared". A write marks its bytes known. */
void model_check_read(struct model_space *space, uint32_t at, uint32_t bytes, const char *what,
                      struct model_at here);
void model_check_write(struct model_space *space, uint32_t at, uint32_t bytes, const char *what,
                       struct model_at here);

/* ------------------------------------------------------------------ threads */

struct model_queue { /* fibers that wait, in order of arrival */
    struct model_fiber *first, *last;
};

/* Ops of one owner that a wait or a commit refers to. Zero is empty. */
struct model_group {
    struct model_op *first;
    int count;
};

/* Ops that run in the order of issue. Zero is empty. */
struct model_chain {
    struct model_op *last;
};

struct model_fiber {                        /* a thread */
    struct model_thread_index thread_index; /* threadIdx */
    struct model_block *block;
    struct model_warp *warp;
    int index, lane;  /* in the block, in the warp */
    const char *role; /* MLA_ROLE, or NULL */
    uint32_t fences;  /* fence.proxy.async so far */
    uint32_t landed;  /* landings of cp.async up to here that barriers have told this thread of */
    bool exited;
    void *tensor;                        /* the tensor instructions' own; zero at start */
    struct model_group tensor_groups[4]; /* likewise, such as the loads a wait::ld waits for */
    /* engine's own */
    struct model_context context;
    int number; /* in the cluster */
    struct model_fiber *queue_next;
    struct model_queue *queue;
    const char *waits_for;
    const void *waits_on;
    uint32_t waits_value; /* such as the parity */
    void (*describe)(const void *object, char *text, size_t bytes);
    struct model_at waits_at;
    struct model_group *copies; /* cp.async: groups, the open one last */
    int num_copies, room_copies;
    uint32_t mbarrier_fences, cluster_generation;
    bool cluster_arrived, timed, timed_out;
    struct model_fiber *timed_next;
};

extern struct model_fiber *model_self; /* who runs; while an op runs, who issued it or waits */

struct model_warp {
    struct model_block *block;
    int index;     /* in the block */
    uint32_t live; /* lanes that exist and have not exited */
    struct model_fiber *lanes;
    struct model_collective_state *open; /* collectives some lanes wait in */
    int registers;                       /* a thread, by setmaxnreg */
    void *tensor;                        /* the tensor instructions' own */
};

struct model_block {
    struct model_thread_index index; /* blockIdx */
    uint32_t rank;                   /* in the cluster */
    int threads, warps, live;        /* live: threads that have not exited */
    bool exited, raw;                /* raw: kernel uses plain pointers into shared memory */
    uint32_t dynamic_bytes;
    struct model_space shared; /* data[0] is address MODEL_SHARED_BASE | rank << 24 */
    struct model_warp *warp;
    struct model_fiber *fiber;
    struct model_named_barrier *named; /* 16 */
    struct model_mbarrier *mbarriers;  /* list */
    void *tensor;
};

struct model_cluster {
    int blocks;
    struct model_block *block[MODEL_MAX_CLUSTER];
};

extern struct model_cluster model_cluster; /* the running one */

/* The block of a rank, or NULL. */
struct model_block *model_block_of(uint32_t rank);

/* ------------------------------------------------------------------ waiting */

/* Puts the running thread to sleep until model_wake_all(queue). what, for the deadlock report, is a
 * constant; describe (may be NULL) adds details of the object. */
void model_sleep(struct model_queue *queue, const char *what, const void *object,
                 void (*describe)(const void *object, char *text, size_t bytes),
                 struct model_at here);
void model_wake_all(struct model_queue *queue);
/* Lets others run, where the schedule likes to; every visible step of a thread calls it. */
void model_step(void);

/* A collective of the lanes in mask (clipped to those that exist): the last lane to arrive calls
 * run with every lane's argument, then all go on. Lanes that arrive at something else, at another
 * line or with another mask are an error. run may put results into *args[lane]. */
void model_collective(const char *name, uint32_t mask,
                      void (*run)(struct model_warp *warp, uint32_t mask, void *const args[32]),
                      void *arg, struct model_at here);

/* ------------------------------------------------------------------ asynchronous work */

struct model_range {
    struct model_space *space;
    uint32_t at, bytes;
};

/* One piece of work. Made by model_op_new, filled in, then model_op_issue; the engine frees it. */
struct model_op {
    const char *name; /* as in PTX */
    void (*run)(struct model_op *op);
    void *data;                 /* payload, zeroed, as long as asked for */
    struct model_fiber *issuer; /* for reports; its block may have exited when the op runs */
    struct model_at at;
    bool
        async_proxy; /* reads of bytes written by threads need fence.proxy.async; true by default */
    bool exempt;     /* ranges are not checked against other ops (raw shared memory) */
    /* engine's own */
    uint16_t slot;
    bool issued, done;
    int waits_for; /* ops that must run before */
    int num_reads, num_writes, num_next, room_ranges, room_next;
    struct model_range *ranges; /* reads, then writes */
    struct model_op **next;     /* ops that wait for this one */
    struct model_chain *chain;
    struct model_group *group;
    struct model_op *group_next, *group_before;
    uint64_t number;                         /* in order of issue */
    int ready_at;                            /* place in the list of ops that may run, -1 */
    struct model_op *open_next, **open_link; /* made, not issued: dropped if the launch fails */
};

struct model_op *model_op_new(const char *name, void (*run)(struct model_op *op),
                              size_t payload_bytes, struct model_at at);
/* All reads before the first write. Marked at issue, unmarked after run; the bytes written become
 * known then. Checks at issue: bytes read are known, fenced and not being written (unless by an op
 * this one is ordered after), bytes written are not being read or written (same exception). */
void model_op_reads(struct model_op *op, struct model_space *space, uint32_t at, uint32_t bytes);
void model_op_writes(struct model_op *op, struct model_space *space, uint32_t at, uint32_t bytes);
/* Order: after one op, after all that are now in a group, after the chain's last (and becomes
 * it). */
void model_op_after(struct model_op *op, struct model_op *before);
void model_op_after_group(struct model_op *op, struct model_group *group);
void model_op_in_chain(struct model_op *op, struct model_chain *chain);
/* Until it has run, the op is in the group. One group an op. */
void model_op_in_group(struct model_op *op, struct model_group *group);
/* May run it at once (schedule eager); op must not be touched afterwards. */
void model_op_issue(struct model_op *op);

/* A wait that demands results: runs what is left of the group, and what that waits for, now.
 * Returns when the group is empty. */
void model_group_finish(struct model_group *group);

/* ------------------------------------------------------------------ barriers, from ops */

/* Where a shared::cluster address lies; checks block, bounds and alignment. */
struct model_place {
    struct model_block *block;
    uint32_t offset; /* into block->shared.data */
};
struct model_place model_place_of(uint32_t address, uint32_t bytes, uint32_t align,
                                  const char *what, struct model_at here);
/* Effects on an mbarrier anywhere in the cluster, at once: call them from run(). */
void model_mbarrier_do_arrive(uint32_t bar, uint32_t count, const char *what, struct model_at here);
void model_mbarrier_do_landed(uint32_t bar, const char *what, struct model_at here);
uint32_t model_landings(void); /* cp.async that have landed so far */
void model_mbarrier_do_complete_tx(uint32_t bar, uint32_t bytes, const char *what,
                                   struct model_at here);

/* ------------------------------------------------------------------ errors, device */

/* "<kernel> block (x,y,z) warp w lane l [role] file:line: <text>"; ends the launch. */
[[noreturn]] void model_fail(struct model_at here, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

enum model_schedule { MODEL_EAGER, MODEL_LATE, MODEL_RANDOM };

struct model_device {
    int sm;                /* 80, 90, 100, 120 */
    int processors;        /* SMs */
    uint32_t shared_bytes; /* dynamic, of one block */
    enum model_schedule schedule;
    uint64_t seed;
};
extern struct model_device model_device;

uint32_t model_random(uint32_t below); /* of the schedule's own sequence */

/* Optional hooks of the tensor instructions (tensor memory, wgmma …): defined or not. begin: before
 * a block's first thread; end: its last thread has exited; may fail (leaks). */
void model_tensor_begin(struct model_block *block) __attribute__((weak));
void model_tensor_end(struct model_block *block) __attribute__((weak));

#endif
