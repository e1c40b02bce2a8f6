/* SPDX-License-Identifier: Apache-2.0 */
/* Events of warps while the model runs. */
#include "trace.h"

#include <stdlib.h>
#include <string.h>

bool model_tracing;
struct trace_event *model_trace_op;
uint32_t model_trace_phases;

/* ------------------------------------------------------------------ room */

/* Events live until their cluster has been played back. */
struct chunk {
    struct chunk *next;
    size_t used;
};
enum { CHUNK_BYTES = 1 << 20 };
static struct chunk *chunks, *kept;

static void *room(size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    if (chunks == NULL || chunks->used + bytes > CHUNK_BYTES) {
        struct chunk *c = kept;
        if (c != NULL)
            kept = c->next;
        else
            c = (struct chunk *)malloc(sizeof *c + CHUNK_BYTES);
        if (c == NULL)
            abort();
        c->next = chunks;
        c->used = (sizeof *c + 15) & ~(size_t)15;
        chunks = c;
    }
    void *p = (char *)chunks + chunks->used;
    chunks->used += bytes;
    memset(p, 0, bytes);
    return p;
}

/* ------------------------------------------------------------------ global memory */

/* Lines of 128 bytes that the launch has touched: what comes for the first time comes from far. */
static uint64_t *lines;
static size_t num_lines, room_lines;

static bool first_touch(uint64_t line)
{
    if (2 * num_lines >= room_lines) {
        size_t more = room_lines ? 2 * room_lines : 1 << 16;
        uint64_t *old = lines, *now = (uint64_t *)calloc(more, sizeof *now);
        if (now == NULL)
            abort();
        for (size_t i = 0; i < room_lines; i++) {
            if (old[i] == 0)
                continue;
            size_t at = old[i] * 0x9E3779B97F4A7C15ull >> 20 & (more - 1);
            while (now[at] != 0)
                at = (at + 1) & (more - 1);
            now[at] = old[i];
        }
        free(old);
        lines = now;
        room_lines = more;
    }
    size_t at = line * 0x9E3779B97F4A7C15ull >> 20 & (room_lines - 1);
    while (lines[at] != 0 && lines[at] != line)
        at = (at + 1) & (room_lines - 1);
    if (lines[at] == line)
        return false;
    lines[at] = line;
    num_lines++;
    return true;
}

void model_trace_global(struct trace_event *ev, const void *at, uint32_t bytes)
{
    if (ev == NULL || bytes == 0)
        return;
    uint64_t from = (uintptr_t)at / 128, to = ((uintptr_t)at + bytes - 1) / 128;
    for (uint64_t line = from; line <= to; line++)
        if (first_touch(line))
            ev->far += 128;
}

/* ------------------------------------------------------------------ events */

void model_trace_begin(void)
{
    const char *path = getenv("MLA_MODEL_TIMELINE");
    model_tracing = path != NULL && *path != '\0';
    if (lines != NULL)
        memset(lines, 0, room_lines * sizeof *lines);
    num_lines = 0;
}

void model_trace_cluster_begin(void)
{
    model_trace_op = NULL;
    model_trace_phases = 0;
}

void *model_trace_room(size_t bytes)
{
    return room(bytes);
}

size_t model_trace_bytes(void)
{
    size_t n = 0;
    for (const struct chunk *c = chunks; c != NULL; c = c->next)
        n += CHUNK_BYTES;
    return n;
}

void model_trace_forget(void)
{
    while (chunks != NULL) {
        struct chunk *c = chunks;
        chunks = c->next;
        c->next = kept;
        kept = c;
    }
}

static bool same(const struct trace_event *ev, enum trace_kind kind, struct model_at at,
                 uint32_t bit)
{
    return ev->kind == kind && ev->at.line == at.line && !(ev->lanes & bit) &&
           (ev->at.file == at.file || strcmp(ev->at.file, at.file) == 0);
}

struct trace_event *model_trace(enum trace_kind kind, struct model_at at)
{
    struct model_fiber *self = model_self;
    struct model_warp *warp = self->warp;
    uint32_t bit = 1u << self->lane;
    if (warp->trace == NULL)
        warp->trace = (struct trace_event *)room(sizeof *warp->trace);
    struct trace_event *before = self->trace ? self->trace : warp->trace, *ev = before->next;
    int tries = 0;
    while (ev != NULL && tries++ < 256 && !same(ev, kind, at, bit))
        ev = ev->next;
    if (ev == NULL || tries > 256) {
        ev = (struct trace_event *)room(sizeof *ev);
        ev->kind = (uint8_t)kind;
        ev->at = at;
        ev->ctas = 1;
        ev->next = before->next;
        before->next = ev;
    }
    ev->lanes |= bit;
    ev->role = self->role;
    for (int i = 0; i < PIPES; i++) {
        if (ev->work[i] < self->work[i])
            ev->work[i] = self->work[i];
        self->work[i] = 0;
    }
    self->trace = ev;
    return ev;
}

/* Lanes go in groups of 128 bytes, and in each every bank gives one word. */
void model_trace_wavefronts(struct trace_event *ev)
{
    if (ev->address == NULL)
        return;
    uint32_t each = ev->amount, group = each <= 4 ? 32 : 128 / each;
    uint32_t waves = 0, least = 0;
    for (uint32_t first = 0; first < 32; first += group) {
        uint32_t words[128], most = 0, come = 0;
        uint8_t bank[32] = {0};
        int num = 0;
        for (uint32_t lane = first; lane < first + group; lane++) {
            if (!(ev->lanes >> lane & 1))
                continue;
            come++;
            for (uint32_t w = 0; w < (each + 3) / 4; w++) {
                uint32_t word = ev->address[lane] / 4 + w;
                bool known = false;
                for (int i = 0; i < num && !known; i++)
                    known = words[i] == word;
                if (known)
                    continue;
                words[num++] = word;
                if (++bank[word % 32] > most)
                    most = bank[word % 32];
            }
        }
        waves += most;
        least += come != 0;
    }
    ev->wavefronts = waves;
    ev->conflicts = waves - least;
}

void model_trace_access(struct trace_event *ev, uint32_t address, uint32_t bytes)
{
    if (ev->address == NULL)
        ev->address = (uint32_t *)room(32 * sizeof *ev->address);
    ev->address[model_self->lane] = address;
    ev->amount = bytes;
    ev->bytes += bytes;
}

/* ------------------------------------------------------------------ barriers */

uint32_t model_trace_phase(void)
{
    return ++model_trace_phases;
}

void model_trace_arrive(uint32_t phase, uint32_t count)
{
    struct trace_event *ev = model_trace_op ? model_trace_op
                             : model_self   ? model_self->trace
                                            : NULL;
    if (ev == NULL)
        return;
    for (int i = ev->num_arrivals - 1; i >= 0; i--)
        if (ev->arrivals[i].phase == phase) {
            ev->arrivals[i].count += count;
            return;
        }
    if (ev->num_arrivals == ev->room_arrivals) {
        uint16_t more = (uint16_t)(ev->room_arrivals ? 4 * ev->room_arrivals : 2);
        struct trace_arrival *a = (struct trace_arrival *)room(more * sizeof *a);
        if (ev->num_arrivals)
            memcpy(a, ev->arrivals, ev->num_arrivals * sizeof *a);
        ev->arrivals = a;
        ev->room_arrivals = more;
    }
    ev->arrivals[ev->num_arrivals++] = {phase, count};
}
