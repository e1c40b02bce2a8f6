/* SPDX-License-Identifier: Apache-2.0 */
/* The picture of a timeline: rows of engines and of warps over time, as SVG inside HTML that needs
 * nothing else. MLA_MODEL_TIMELINE_WINDOW=FROM:TO (clocks) chooses the stretch; otherwise it is all
 * of a short run, or the middle of a long one. */
#include "timeline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEFT = 190, WIDTH = 1500, ROW = 13, MOST = 16000, MOST_BARS = 40000 };

static const char *color_of(int kind)
{
    switch (kind) {
    case TRACE_NONE:
        return "#456";
    case TRACE_LD:
    case TRACE_ST:
    case TRACE_SHUFFLE:
    case TRACE_REMOTE:
        return "#c80";
    case TRACE_WGMMA:
    case TRACE_WGMMA_COMMIT:
    case TRACE_UMMA:
    case TRACE_UMMA_COMMIT:
    case TRACE_UMMA_COPY:
    case TRACE_MMA_SYNC:
        return "#27c";
    case TRACE_TMEM_LD:
    case TRACE_TMEM_ST:
    case TRACE_TMEM_WAIT_LD:
    case TRACE_TMEM_WAIT_ST:
        return "#2a8";
    case TRACE_COPY_IN:
    case TRACE_COPY_OUT:
    case TRACE_ASYNC:
    case TRACE_ASYNC_ARRIVE:
        return "#a4c";
    case TRACE_ARRIVE:
        return "#777";
    default:
        return "#b55";
    }
}

static void escaped(FILE *f, const char *text)
{
    for (; *text; text++)
        if (*text == '<')
            fputs("&lt;", f);
        else if (*text == '>')
            fputs("&gt;", f);
        else if (*text == '&')
            fputs("&amp;", f);
        else
            fputc(*text, f);
}

static void window_of(const struct timeline_picture *p, double *from, double *to)
{
    const char *text = getenv("MLA_MODEL_TIMELINE_WINDOW");
    *from = 0;
    *to = p->clocks;
    if (text != NULL && sscanf(text, "%lf:%lf", from, to) == 2 && *from < *to)
        return;
    *from = 0;
    *to = p->clocks;
    if (p->clocks > MOST) {
        *from = p->clocks / 2 - MOST / 2;
        *to = *from + MOST;
    }
}

void model_timeline_draw(const char *path, bool first, const char *title, const char *table,
                         const struct timeline_picture *p)
{
    FILE *f = fopen(path, first ? "w" : "a");
    if (f == NULL) {
        fprintf(stderr, "timeline: %s: cannot write\n", path);
        return;
    }
    double from, to;
    window_of(p, &from, &to);
    int engines = p->blocks * ENGINES, rows = engines + p->blocks * p->warps;
    double scale = WIDTH / (to - from);
    if (first)
        fprintf(f, "<!DOCTYPE html><meta charset=\"utf-8\"><title>timeline</title>\n");
    fprintf(f, "<h2>");
    escaped(f, title);
    fprintf(f, "</h2>\n<pre>");
    escaped(f, table);
    fprintf(f,
            "</pre>\n<p>Clocks %.0f to %.0f of %.0f. Engines: blue; pipes are those of scheduler "
            "0. Warps, by the event that they come to: red plain work before a barrier or a wait, "
            "orange shared memory, blue tensor core, green tensor memory, violet copies, grey "
            "arrivals; empty: waiting.</p>\n",
            from, to, p->clocks);
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "font-family=\"monospace\" font-size=\"10\">\n",
            LEFT + WIDTH + 10, (rows + 2) * ROW + 20);
    for (int r = 0; r < rows; r++) {
        char name[80];
        if (r < engines)
            snprintf(name, sizeof name, "%s%.0d %s", p->blocks > 1 ? "SM " : "",
                     p->blocks > 1 ? r / ENGINES + 1 : 0, model_engine_names[r % ENGINES]);
        else {
            int w = r - engines;
            snprintf(name, sizeof name, "%s%.0d warp %d %s", p->blocks > 1 ? "SM " : "",
                     p->blocks > 1 ? w / p->warps + 1 : 0, w % p->warps,
                     p->roles[w] ? p->roles[w] : "");
        }
        fprintf(f, "<text x=\"2\" y=\"%d\">", r * ROW + 10);
        escaped(f, name);
        fprintf(f, "</text><path d=\"M%d %dh%d\" stroke=\"#ddd\"/>\n", LEFT, (r + 1) * ROW, WIDTH);
    }
    for (int i = 0; i <= 10; i++) {
        double t = from + (to - from) * i / 10;
        fprintf(f, "<text x=\"%d\" y=\"%d\">%.0f</text>\n", LEFT + WIDTH * i / 10, rows * ROW + 14,
                t);
    }
    int bars = 0;
    for (int i = 0; i < p->num_bars && bars < MOST_BARS; i++) {
        const struct timeline_bar *b = &p->bars[i];
        if ((double)b->to < from || (double)b->from > to)
            continue;
        double x = ((double)b->from < from ? 0 : (double)b->from - from) * scale;
        double w = ((double)b->to > to ? to : (double)b->to) - from;
        w = w * scale - x;
        if (w < 0.15)
            continue;
        fprintf(f, "<rect x=\"%.1f\" y=\"%d\" width=\"%.2f\" height=\"%d\" fill=\"%s\">", LEFT + x,
                b->row * ROW + 1, w, ROW - 2, color_of(b->color));
        if (b->line)
            fprintf(f, "<title>line %d, clocks %.0f to %.0f</title>", b->line, (double)b->from,
                    (double)b->to);
        fprintf(f, "</rect>\n");
        bars++;
    }
    fprintf(f, "</svg>\n");
    fclose(f);
}
