/* SPDX-License-Identifier: Apache-2.0 */
/* How many plain instructions a kernel's code has in front of each event: read from the files that
 * MLA_MODEL_WEIGHTS names (a list with ':' between), which validation/timeline_weights.py makes of
 * the disassembly. */
#include "timeline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    enum trace_kind kind;
} kinds[] = {{"LD", TRACE_LD},
             {"ST", TRACE_ST},
             {"SHUFFLE", TRACE_SHUFFLE},
             {"VOTE", TRACE_VOTE},
             {"SYNCWARP", TRACE_SYNCWARP},
             {"REMOTE", TRACE_REMOTE},
             {"ATOMIC", TRACE_ATOMIC},
             {"MMA_SYNC", TRACE_MMA_SYNC},
             {"ARRIVE", TRACE_ARRIVE},
             {"WAIT", TRACE_WAIT},
             {"WGMMA", TRACE_WGMMA},
             {"WGMMA_WAIT", TRACE_WGMMA_WAIT},
             {"UMMA", TRACE_UMMA},
             {"UMMA_COPY", TRACE_UMMA_COPY},
             {"UMMA_COMMIT", TRACE_UMMA_COMMIT},
             {"TMEM_LD", TRACE_TMEM_LD},
             {"TMEM_ST", TRACE_TMEM_ST},
             {"COPY_IN", TRACE_COPY_IN},
             {"COPY_OUT", TRACE_COPY_OUT},
             {"ASYNC", TRACE_ASYNC},
             {"ASYNC_ARRIVE", TRACE_ASYNC_ARRIVE}};

static struct weight {
    char file[40];
    int line;
    enum trace_kind kind;
    float work[PIPES];
} * weights;
static int num_weights, room_weights;

static struct source {
    char name[40];
    uint32_t crc;
    bool compared;
} sources[64];
static int num_sources;
static char older[40]; /* a source that has changed since */

static void add(const char *line)
{
    struct weight w;
    char kind[24];
    memset(&w, 0, sizeof w);
    if (sscanf(line, "%39[^:]:%d %23s %f %f %f %f %f %f %f", w.file, &w.line, kind, &w.work[0],
               &w.work[1], &w.work[2], &w.work[3], &w.work[4], &w.work[5], &w.work[6]) != 10)
        return;
    size_t k = 0;
    while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].name, kind) != 0)
        k++;
    if (k == sizeof kinds / sizeof *kinds)
        return;
    w.kind = kinds[k].kind;
    if (num_weights == room_weights) {
        room_weights = room_weights ? 2 * room_weights : 256;
        weights = (struct weight *)realloc(weights, (size_t)room_weights * sizeof *weights);
        if (weights == NULL)
            abort();
    }
    weights[num_weights++] = w;
}

static void read_file(const char *path, const char *kernel)
{
    static char line[1024];
    FILE *f = fopen(path, "r");
    bool mine = false;
    int first_source = num_sources;
    if (f == NULL) {
        fprintf(stderr, "timeline: MLA_MODEL_WEIGHTS: %s: cannot read\n", path);
        return;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        struct source *s = &sources[num_sources];
        if (strncmp(line, "kernel ", 7) == 0)
            mine = num_weights == 0 && strcmp(line + 7, kernel) == 0;
        else if (num_sources < 64 && sscanf(line, "source %39s %x", s->name, &s->crc) == 2)
            s->compared = false, num_sources++;
        else if (mine)
            add(line);
    }
    if (num_weights == 0)
        num_sources = first_source;
    fclose(f);
}

void model_weights_read(const char *kernel)
{
    const char *list = getenv("MLA_MODEL_WEIGHTS");
    num_weights = num_sources = 0;
    older[0] = '\0';
    while (list != NULL && *list != '\0' && num_weights == 0) {
        char path[512];
        size_t length = strcspn(list, ":");
        snprintf(path, sizeof path, "%.*s", (int)length, list);
        read_file(path, kernel);
        list += length + (list[length] == ':');
    }
}

/* The checksum of zlib. */
static bool file_crc(const char *path, uint32_t *crc)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return false;
    uint32_t c = ~0u;
    for (int byte; (byte = getc(f)) != EOF;) {
        c ^= (uint32_t)byte;
        for (int i = 0; i < 8; i++)
            c = c >> 1 ^ (c & 1 ? 0xEDB88320u : 0);
    }
    fclose(f);
    *crc = ~c;
    return true;
}

static void compare(const char *path, const char *name)
{
    for (int i = 0; i < num_sources; i++) {
        uint32_t crc;
        if (strcmp(sources[i].name, name) != 0 || sources[i].compared)
            continue;
        sources[i].compared = true;
        if (file_crc(path, &crc) && crc != sources[i].crc)
            snprintf(older, sizeof older, "%s", name);
    }
}

bool model_weights_find(const struct trace_event *ev, uint32_t work[PIPES])
{
    static float rest[PIPES]; /* fractions, so that the sums are right */
    if (num_weights == 0)
        return false;
    const char *slash = strrchr(ev->at.file, '/'), *name = slash ? slash + 1 : ev->at.file;
    compare(ev->at.file, name);
    for (int i = 0; i < num_weights; i++) {
        const struct weight *w = &weights[i];
        if (w->line != ev->at.line || w->kind != ev->kind || strcmp(w->file, name) != 0)
            continue;
        for (int p = 0; p < PIPES; p++) {
            rest[p] += w->work[p];
            work[p] = (uint32_t)rest[p];
            rest[p] -= (float)work[p];
        }
        return true;
    }
    return false;
}

const char *model_weights_source(void)
{
    static char text[120];
    if (num_weights == 0)
        return "plain instructions: only those of ptx functions";
    if (older[0] != '\0')
        snprintf(text, sizeof text, "plain instructions: of OLDER code (%s has changed since)",
                 older);
    else
        snprintf(text, sizeof text, "plain instructions: counted in the code");
    return text;
}
