/* SPDX-License-Identifier: Apache-2.0 */
/* Drawings of mla bench --routes as SVG. */
#include "chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ sets */

static bool equal_requests(const struct route_row *r)
{
    return r->requests > 0 && !strchr(r->batch, ',') && r->way <= WAY_AUTO;
}

static bool in_set(const struct route_row *r, const struct chart_set *s)
{
    const struct route_row *a = s->first;
    int64_t keys = r->seq_len_kv == r->query_len ? 0 : r->seq_len_kv / r->requests;
    /* A query length that is all of a request's keys belongs to both kinds. */
    bool whole = keys == 0 && s->keys == r->query_len / r->requests;
    return equal_requests(r) && r->heads == a->heads && r->requests == a->requests &&
           r->topk == a->topk && strcmp(r->cache, a->cache) == 0 && strcmp(r->fill, a->fill) == 0 &&
           (keys == s->keys || whole);
}

int mla_chart_sets(const struct route_bench *b, struct chart_set *sets)
{
    int n = 0;
    for (int i = 0; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        if (!equal_requests(r))
            continue;
        struct chart_set s = {r, r->seq_len_kv == r->query_len ? 0 : r->seq_len_kv / r->requests};
        int k = 0;
        while (k < n && !(sets[k].keys == s.keys && in_set(r, &sets[k])))
            k++;
        if (k == n && n < CHART_SETS)
            sets[n++] = s;
    }
    return n;
}

static int by_queries(const void *a, const void *b)
{
    const struct chart_point *x = a, *y = b;
    return (x->queries > y->queries) - (x->queries < y->queries);
}

int mla_chart_points(const struct route_bench *b, const struct chart_set *s,
                     struct chart_point *points)
{
    int n = 0;
    for (int i = 0; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        if (!in_set(r, s))
            continue;
        int k = 0;
        int64_t queries = r->query_len / r->requests;
        while (k < n && points[k].queries != queries)
            k++;
        if (k == CHART_POINTS)
            continue;
        if (k == n)
            points[n++] = (struct chart_point){.queries = queries};
        points[k].row[r->route] = r;
    }
    qsort(points, (size_t)n, sizeof *points, by_queries);
    return n;
}

static void length_text(int64_t n, char *text, size_t bytes)
{
    if (n >= 1024 && n % 1024 == 0)
        snprintf(text, bytes, "%lldk", (long long)n / 1024);
    else
        snprintf(text, bytes, "%lld", (long long)n);
}

void mla_chart_title(const struct chart_set *s, char *text, size_t bytes)
{
    const struct route_row *r = s->first;
    char keys[24], requests[32] = "", kind[48] = "prefill";
    length_text(s->keys, keys, sizeof keys);
    if (s->keys)
        snprintf(kind, sizeof kind, "%s keys in all", keys);
    if (r->requests > 1)
        snprintf(requests, sizeof requests, "%lld requests, ", (long long)r->requests);
    snprintf(text, bytes, "%lld heads, %s%s, %s cache%s%s%s", (long long)r->heads, requests, kind,
             r->cache, r->topk ? ", " : "", r->topk ? r->fill : "", r->topk ? " lists" : "");
}

double mla_chart_crossing(const struct chart_point *p, int n)
{
    double found = 0, last_x = 0, last = 0;
    for (int i = 0; i < n; i++) {
        const struct route_row *masked = p[i].row[MLA_ROUTE_MASKED_MHA];
        const struct route_row *sparse = p[i].row[MLA_ROUTE_SPARSE_MQA];
        if (!masked || !sparse)
            continue;
        double x = (double)p[i].queries, now = log(sparse->cold.median / masked->cold.median);
        if (now >= 0)
            found = 0;
        else if (!found)
            found = last_x > 0 && last > 0
                        ? exp(log(last_x) + log(x / last_x) * last / (last - now))
                        : x;
        last = now;
        last_x = x;
    }
    return found;
}

const char *mla_chart_colour(enum route_way way, mla_route route)
{
    static const char *const routes[] = {"#222222", "#1b6ca8", "#d1495b", "#2e933c", "#8e5bd6"};
    return way == WAY_BATCH_WIDE ? "#d98a1f" : way == WAY_INDEXER ? "#888888" : routes[route];
}

static const char *route_label(int route)
{
    return route == MLA_ROUTE_AUTO ? "as routed" : mla_route_name((mla_route)route);
}

/* ------------------------------------------------------------------- frame */

/* A panel with logarithmic axes: its place in the drawing, and its ranges. */
struct panel {
    double left, top, width, height;
    double x0, x1, y0, y1;
};

static double px(const struct panel *p, double x)
{
    return p->left + p->width * log(x / p->x0) / log(p->x1 / p->x0);
}

static double py(const struct panel *p, double y)
{
    return p->top + p->height * (1 - log(y / p->y0) / log(p->y1 / p->y0));
}

static void put_text(FILE *f, double x, double y, const char *style, const char *text)
{
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\"%s>", x, y, style);
    for (; *text; text++) {
        if (*text == '<' || *text == '>' || *text == '&' || *text == '"')
            fprintf(f, "&#%d;", *text);
        else
            fputc(*text, f);
    }
    fprintf(f, "</text>\n");
}

#define MIDDLE " text-anchor=\"middle\""
#define END " text-anchor=\"end\""
#define BOLD " font-weight=\"bold\""
#define SMALL " font-size=\"11\" fill=\"#555\""

static void begin(FILE *f, double width, double height, const char *title, const char *about)
{
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
            "height=\"%.0f\" font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" "
            "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
            width, height, width, height);
    put_text(f, 16, 24, BOLD " font-size=\"15\"", title);
    put_text(f, 16, 42, SMALL, about);
}

static void line(FILE *f, double xa, double ya, double xb, double yb, const char *style)
{
    fprintf(f, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", xa, ya, xb, yb,
            style);
}

static void binary_ticks(FILE *f, const struct panel *p)
{
    int step = log2(p->x1 / p->x0) > 7.5 ? 2 : 1;
    for (int e = (int)ceil(log2(p->x0) - 1e-9); exp2(e) <= p->x1 * 1.0001; e++) {
        char text[24];
        double x = px(p, exp2(e));
        line(f, x, p->top, x, p->top + p->height, "stroke=\"#e4e4e4\"");
        length_text((int64_t)exp2(e), text, sizeof text);
        if (e % step == 0)
            put_text(f, x, p->top + p->height + 16, MIDDLE, text);
    }
}

/* Decades with their label, a thin line at 2 and 5 of each. */
static void decimal_ticks(FILE *f, const struct panel *p, bool along_x)
{
    double low = along_x ? p->x0 : p->y0, high = along_x ? p->x1 : p->y1;
    for (int e = (int)floor(log10(low)); pow(10, e) <= high * 1.0001; e++)
        for (int m = 1; m <= 5; m = m == 1 ? 2 : m + 3) {
            double v = m * pow(10, e), at;
            char text[24];
            if (v < low * 0.9999 || v > high * 1.0001)
                continue;
            at = along_x ? px(p, v) : py(p, v);
            const char *style = m == 1 ? "stroke=\"#d4d4d4\"" : "stroke=\"#f0f0f0\"";
            snprintf(text, sizeof text,
                     v >= 1e6   ? "%.3gM"
                     : v >= 1e4 ? "%.0f"
                                : "%.5g",
                     v >= 1e6 ? v * 1e-6 : v);
            if (along_x)
                line(f, at, p->top, at, p->top + p->height, style);
            else
                line(f, p->left, at, p->left + p->width, at, style);
            bool label = m == 1 || high / low < 300;
            if (label && along_x)
                put_text(f, at, p->top + p->height + 16, MIDDLE, text);
            else if (label)
                put_text(f, p->left - 6, at + 4, END, text);
        }
}

static void axis_names(FILE *f, const struct panel *p, const char *x, const char *y)
{
    char style[96];
    fprintf(f,
            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" "
            "stroke=\"#888\"/>\n",
            p->left, p->top, p->width, p->height);
    put_text(f, p->left + p->width / 2, p->top + p->height + 34, MIDDLE, x);
    snprintf(style, sizeof style, MIDDLE " transform=\"rotate(-90 %.1f %.1f)\"", p->left - 48,
             p->top + p->height / 2);
    put_text(f, p->left - 48, p->top + p->height / 2, style, y);
}

static void key(FILE *f, double x, double y, const char *colour, const char *dash, const char *name)
{
    fprintf(f,
            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
            "stroke-width=\"2.5\" %s/>\n",
            x, y - 4, x + 22, y - 4, colour, dash);
    put_text(f, x + 27, y, "", name);
}

#define DASH "stroke-dasharray=\"5 4\""

/* ------------------------------------------------------------------- times */

static void grow(struct panel *p, double x, double y)
{
    p->x0 = fmin(p->x0, x);
    p->x1 = fmax(p->x1, x);
    p->y0 = fmin(p->y0, y);
    p->y1 = fmax(p->y1, y);
}

static void draw_route(FILE *f, const struct panel *p, const struct chart_point *points, int n,
                       int route)
{
    const char *colour = mla_chart_colour(WAY_FORCED, (mla_route)route);
    bool own = route == MLA_ROUTE_AUTO;
    fprintf(f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" %s points=\"", colour,
            own ? "1.6" : "2.2", own ? DASH : "");
    for (int i = 0; i < n; i++)
        if (points[i].row[route])
            fprintf(f, "%.1f,%.1f ", px(p, (double)points[i].queries),
                    py(p, points[i].row[route]->cold.median * 1e6));
    fprintf(f, "\"/>\n");
    for (int i = 0; i < n && !own; i++)
        if (points[i].row[route])
            fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"/>\n",
                    px(p, (double)points[i].queries),
                    py(p, points[i].row[route]->cold.median * 1e6), colour);
}

/* The crossover: a line, and its number at the foot, on the side that has room. */
static void draw_crossing(FILE *f, const struct panel *p, double x)
{
    char text[48];
    bool right = px(p, x) < p->left + p->width * 0.6;
    if (!(x > p->x0 && x < p->x1))
        return;
    line(f, px(p, x), p->top, px(p, x), p->top + p->height,
         "stroke=\"#000\" stroke-dasharray=\"2 3\"");
    snprintf(text, sizeof text, "crossover %.0f", x);
    put_text(f, px(p, x) + (right ? 5 : -5), p->top + p->height - 8, right ? "" : END, text);
}

static void time_panel(FILE *f, struct panel *p, const char *title,
                       const struct chart_point *points, int n, bool *used)
{
    p->x0 = p->y0 = INFINITY;
    p->x1 = p->y1 = 0;
    for (int i = 0; i < n; i++)
        for (int r = 0; r < MLA_ROUTES; r++)
            if (points[i].row[r])
                grow(p, (double)points[i].queries, points[i].row[r]->cold.median * 1e6);
    p->y0 = exp2(floor(log2(p->y0 * 0.8)));
    p->y1 = exp2(ceil(log2(p->y1 * 1.2)));
    put_text(f, p->left, p->top - 8, BOLD, title);
    binary_ticks(f, p);
    decimal_ticks(f, p, false);
    axis_names(f, p, "query tokens of a request", "microseconds");
    for (int r = MLA_ROUTES - 1; r >= 0; r--) {
        bool any = false;
        for (int i = 0; i < n; i++)
            any |= points[i].row[r] != NULL;
        if (any)
            draw_route(f, p, points, n, r);
        used[r] |= any;
    }
    draw_crossing(f, p, mla_chart_crossing(points, n));
}

bool mla_chart_times(FILE *f, const struct route_bench *b, const char *about)
{
    enum { LEAST_POINTS = 3, MOST_PANELS = 16, PANEL_WIDTH = 520, PANEL_HEIGHT = 330, HEAD = 78 };
    static struct chart_point points[CHART_POINTS];
    struct chart_set sets[CHART_SETS];
    bool used[MLA_ROUTES] = {false};
    char title[160];
    int count = mla_chart_sets(b, sets), panels = 0;
    for (int s = 0; s < count; s++)
        if (mla_chart_points(b, &sets[s], points) >= LEAST_POINTS && panels < MOST_PANELS)
            sets[panels++] = sets[s];
    if (!f || !panels)
        return panels > 0;
    int columns = panels > 1 ? 2 : 1, lines = (panels + columns - 1) / columns;
    begin(f, columns * PANEL_WIDTH + 16, HEAD + lines * PANEL_HEIGHT + 8,
          "Time of a batch by route, L2 flushed", about);
    for (int s = 0; s < panels; s++) {
        int row = s / columns;
        struct panel p = {.left = 72 + s % columns * PANEL_WIDTH,
                          .top = HEAD + 30 + row * PANEL_HEIGHT,
                          .width = PANEL_WIDTH - 88,
                          .height = PANEL_HEIGHT - 84};
        int n = mla_chart_points(b, &sets[s], points);
        mla_chart_title(&sets[s], title, sizeof title);
        time_panel(f, &p, title, points, n, used);
    }
    double x = 16;
    for (int r = 0; r < MLA_ROUTES; r++)
        if (used[r]) {
            key(f, x, 66, mla_chart_colour(WAY_FORCED, (mla_route)r),
                r == MLA_ROUTE_AUTO ? DASH : "", route_label(r));
            x += 116;
        }
    fprintf(f, "</svg>\n");
    return true;
}

/* -------------------------------------------------------------------- heat */

struct cell {
    int64_t heads, requests, queries, keys;
    const char *fill, *cache;
    double ratio; /* sparse over masked: above 1 masked MHA is faster */
};

static int by_column(const void *a, const void *b)
{
    const struct cell *x = a, *y = b;
    if (x->keys != y->keys)
        return x->keys < y->keys ? -1 : 1;
    return (x->queries > y->queries) - (x->queries < y->queries);
}

static bool same_column(const struct cell *a, const struct cell *b)
{
    return a->queries == b->queries && a->keys == b->keys;
}

static bool same_line(const struct cell *a, const struct cell *b)
{
    return a->heads == b->heads && a->requests == b->requests && strcmp(a->fill, b->fill) == 0 &&
           strcmp(a->cache, b->cache) == 0;
}

static int cells_of(const struct route_bench *b, struct cell *cells, int most)
{
    int n = 0;
    for (int i = 0; i < b->count; i++)
        for (int j = 0; j < b->count && n < most; j++) {
            const struct route_row *x = &b->rows[i], *y = &b->rows[j];
            if (!equal_requests(x) || x->route != MLA_ROUTE_MASKED_MHA ||
                y->route != MLA_ROUTE_SPARSE_MQA || y->source != x->source)
                continue;
            cells[n++] = (struct cell){
                x->heads, x->requests, x->query_len / x->requests,     x->seq_len_kv / x->requests,
                x->fill,  x->cache,    y->cold.median / x->cold.median};
        }
    return n;
}

/* White at 1; red where masked MHA wins, green where sparse MQA does; full at a factor of 4. */
static void heat_colour(double ratio, char *text, size_t bytes)
{
    static const double red[] = {209, 73, 91}, green[] = {46, 147, 60};
    const double *full = ratio > 1 ? red : green;
    double strength = 0.85 * fmin(1, fabs(log2(ratio)) / 2);
    snprintf(text, bytes, "#%02x%02x%02x", (unsigned)(255 - strength * (255 - full[0])),
             (unsigned)(255 - strength * (255 - full[1])),
             (unsigned)(255 - strength * (255 - full[2])));
}

static void line_label(const struct cell *c, const struct cell *all, int n, char *text,
                       size_t bytes)
{
    bool requests = false, fills = false, caches = false;
    for (int i = 0; i < n; i++) {
        requests |= all[i].requests != 1;
        fills |= strcmp(all[i].fill, all[0].fill) != 0;
        caches |= strcmp(all[i].cache, all[0].cache) != 0;
    }
    int used = snprintf(text, bytes, "%lld heads", (long long)c->heads);
    if (requests)
        used += snprintf(text + used, bytes - (size_t)used, " × %lld", (long long)c->requests);
    if (fills)
        used += snprintf(text + used, bytes - (size_t)used, ", %s", c->fill);
    if (caches)
        snprintf(text + used, bytes - (size_t)used, ", %s", c->cache);
}

bool mla_chart_heat(FILE *f, const struct route_bench *b, const char *about)
{
    enum { CELLS = 1024, LINES = 64, CELL_WIDTH = 50, CELL_HEIGHT = 26, LEFT = 190, TOP = 128 };
    static struct cell cells[CELLS], columns[CELLS];
    const struct cell *lines[LINES];
    int n = cells_of(b, cells, CELLS), num_columns = 0, num_lines = 0;
    if (!f || n < 2)
        return n > 1;
    memcpy(columns, cells, sizeof columns);
    qsort(columns, (size_t)n, sizeof *columns, by_column);
    for (int i = 0; i < n; i++)
        if (i == 0 || !same_column(&columns[i], &columns[num_columns - 1]))
            columns[num_columns++] = columns[i];
    for (int i = 0; i < n; i++) {
        int k = 0;
        while (k < num_lines && !same_line(&cells[i], lines[k]))
            k++;
        if (k == num_lines && k < LINES)
            lines[num_lines++] = &cells[i];
    }
    double width = LEFT + num_columns * CELL_WIDTH + 16;
    begin(f, fmax(width, 760), TOP + num_lines * CELL_HEIGHT + 24,
          "Time of sparse MQA over masked MHA, by heads and length", about);
    put_text(f, 16, 64, "",
             "Above 1 (red) masked MHA is faster, below 1 (green) sparse MQA; full colour at a "
             "factor of 4.");
    put_text(f, LEFT - 8, TOP - 30, END SMALL, "keys of a request");
    put_text(f, LEFT - 8, TOP - 10, END SMALL, "query tokens");
    for (int c = 0; c < num_columns; c++) {
        char text[32];
        double x = LEFT + (c + 0.5) * CELL_WIDTH;
        length_text(columns[c].keys, text, sizeof text);
        if (c == 0 || columns[c].keys != columns[c - 1].keys) {
            put_text(f, x, TOP - 30, MIDDLE, text);
            if (c)
                line(f, LEFT + c * CELL_WIDTH, TOP - 42, LEFT + c * CELL_WIDTH,
                     TOP + num_lines * CELL_HEIGHT, "stroke=\"#888\"");
        }
        length_text(columns[c].queries, text, sizeof text);
        put_text(f, x, TOP - 10, MIDDLE, text);
    }
    for (int k = 0; k < num_lines; k++) {
        char text[96];
        line_label(lines[k], cells, n, text, sizeof text);
        put_text(f, LEFT - 8, TOP + (k + 0.68) * CELL_HEIGHT, END, text);
    }
    for (int i = 0; i < n; i++) {
        int c = 0, k = 0;
        char colour[40], text[16];
        while (c < num_columns && !same_column(&cells[i], &columns[c]))
            c++;
        while (k < num_lines && !same_line(&cells[i], lines[k]))
            k++;
        if (k == num_lines)
            continue;
        heat_colour(cells[i].ratio, colour, sizeof colour);
        fprintf(f,
                "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\" "
                "stroke=\"#fff\"/>\n",
                LEFT + c * CELL_WIDTH, TOP + k * CELL_HEIGHT, CELL_WIDTH, CELL_HEIGHT, colour);
        snprintf(text, sizeof text, cells[i].ratio < 10 ? "%.2f" : "%.0f", cells[i].ratio);
        put_text(f, LEFT + (c + 0.5) * CELL_WIDTH, TOP + (k + 0.68) * CELL_HEIGHT, MIDDLE, text);
    }
    fprintf(f, "</svg>\n");
    return true;
}

/* ---------------------------------------------------------------- roofline */

/* What makers print: dense bf16 and memory. */
static bool peaks_of(const char *about, double *tflops, double *gbytes)
{
    static const struct {
        const char *name;
        double tflops, gbytes;
    } known[] = {{"H200", 989, 4800}, {"H100 PCIe", 756, 2000},      {"H100 NVL", 835, 3900},
                 {"H100", 989, 3350}, {"A100-SXM4-80GB", 312, 2039}, {"B200", 2250, 8000}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(about, known[i].name)) {
            *tflops = known[i].tflops;
            *gbytes = known[i].gbytes;
            return true;
        }
    return false;
}

static void draw_roofs(FILE *f, const struct panel *p, double tflops, double gbytes)
{
    double ridge = tflops * 1e3 / gbytes; /* FLOP a byte */
    double from = fmax(p->x0, p->y0 * 1e3 / gbytes);
    if (from < ridge)
        line(f, px(p, from), py(p, from * gbytes * 1e-3), px(p, fmin(ridge, p->x1)),
             py(p, fmin(ridge, p->x1) * gbytes * 1e-3), "stroke=\"#444\" stroke-width=\"1.6\"");
    line(f, px(p, fmax(ridge, p->x0)), py(p, tflops), px(p, p->x1), py(p, tflops),
         "stroke=\"#444\" stroke-width=\"1.6\"");
    char text[64];
    snprintf(text, sizeof text, "%.0f TFLOP/s (bf16, as printed)", tflops);
    put_text(f, p->left + p->width - 6, py(p, tflops) - 6, END SMALL, text);
    snprintf(text, sizeof text, "memory: %.0f GB/s", gbytes);
    double middle = sqrt(from * ridge);
    put_text(f, px(p, middle) + 12, py(p, middle * gbytes * 1e-3) + 14, SMALL, text);
}

bool mla_chart_roofline(FILE *f, const struct route_bench *b, const char *about)
{
    struct panel p = {.left = 84, .top = 92, .width = 640, .height = 400, .y0 = INFINITY};
    double tflops = 0, gbytes = 0;
    bool used[MLA_ROUTES] = {false};
    p.x0 = INFINITY;
    for (int i = 0; i < b->count; i++)
        if (b->rows[i].way == WAY_FORCED && b->rows[i].bytes > 0)
            grow(&p, b->rows[i].flop / b->rows[i].bytes,
                 b->rows[i].flop / b->rows[i].cold.median * 1e-12);
    if (!f || !(p.x1 > p.x0))
        return p.x1 > p.x0;
    if (peaks_of(about, &tflops, &gbytes))
        p.y1 = fmax(p.y1, tflops * 1.3);
    p.x0 = exp2(floor(log2(p.x0)));
    p.x1 = exp2(ceil(log2(p.x1)));
    p.y0 = fmax(p.y0 * 0.8, p.y1 * 1e-4);
    p.y1 *= 1.1;
    begin(f, 748, 556, "Useful FLOP a second against useful FLOP over bytes that must move", about);
    decimal_ticks(f, &p, true);
    decimal_ticks(f, &p, false);
    axis_names(f, &p, "FLOP a byte (rows of lists counted once for each query)", "TFLOP/s");
    if (tflops > 0)
        draw_roofs(f, &p, tflops, gbytes);
    for (int i = 0; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        double y = r->flop / r->cold.median * 1e-12;
        if (r->way != WAY_FORCED || y < p.y0)
            continue;
        used[r->route] = true;
        fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.4\" fill=\"%s\" fill-opacity=\"0.7\"/>\n",
                px(&p, r->flop / r->bytes), py(&p, y), mla_chart_colour(r->way, r->route));
    }
    double x = 16;
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++)
        if (used[r]) {
            key(f, x, 68, mla_chart_colour(WAY_FORCED, (mla_route)r), "", route_label(r));
            x += 116;
        }
    fprintf(f, "</svg>\n");
    return true;
}

/* ------------------------------------------------------------------- mixed */

/* Bars of one batch: each way that was timed, the longest 5 times the library's own or more. */
static double mixed_batch(FILE *f, const struct route_bench *b, int first, double y)
{
    enum { LEFT = 132, BAR = 560, HEIGHT = 15, MOST_TIMES = 5 };
    double own = 0, most = 0;
    char text[256];
    const struct route_row *head = &b->rows[first];
    for (int i = first; i < b->count && b->rows[i].source == head->source; i++) {
        most = fmax(most, b->rows[i].cold.median);
        if (b->rows[i].way == WAY_AUTO)
            own = b->rows[i].cold.median;
    }
    most = own > 0 ? fmin(most, MOST_TIMES * own) : most;
    snprintf(text, sizeof text, "%.120s  (%lld heads, %s cache, %s lists)", head->batch,
             (long long)head->heads, head->cache, head->fill);
    put_text(f, 16, y, BOLD, text);
    y += 6;
    for (int i = first; i < b->count && b->rows[i].source == head->source; i++) {
        const struct route_row *r = &b->rows[i];
        double width = BAR * fmin(1, r->cold.median / most);
        if (r->way == WAY_INDEXER)
            continue;
        put_text(f, LEFT - 8, y + 12, END,
                 r->way == WAY_AUTO         ? "each its own"
                 : r->way == WAY_BATCH_WIDE ? "batch-wide"
                                            : mla_route_name(r->route));
        fprintf(f,
                "<rect x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"%s\" "
                "fill-opacity=\"0.85\"/>\n",
                LEFT, y, width, HEIGHT, mla_chart_colour(r->way, r->route));
        if (own > 0 && r->way != WAY_AUTO)
            snprintf(text, sizeof text, "%.0f us, %.2f times", r->cold.median * 1e6,
                     r->cold.median / own);
        else
            snprintf(text, sizeof text, "%.0f us", r->cold.median * 1e6);
        put_text(f, LEFT + width + 6, y + 12, "", text);
        y += HEIGHT + 3;
    }
    return y + 24;
}

bool mla_chart_mixed(FILE *f, const struct route_bench *b, const char *about)
{
    enum { MOST = 10 };
    int batches = 0, bars = 0, end = b->count;
    for (int i = 0; i < end; i++)
        if (strchr(b->rows[i].batch, ',')) {
            batches += i == 0 || b->rows[i].source != b->rows[i - 1].source;
            if (batches > MOST) {
                batches = MOST;
                end = i;
                break;
            }
            bars += b->rows[i].way != WAY_INDEXER;
        }
    if (!f || !batches)
        return batches > 0;
    begin(f, 860, 76 + batches * 30 + bars * 18, "Mixed batches in one run", about);
    double y = 74;
    for (int i = 0; i < end; i++)
        if (strchr(b->rows[i].batch, ',') && (i == 0 || b->rows[i].source != b->rows[i - 1].source))
            y = mixed_batch(f, b, i, y);
    fprintf(f, "</svg>\n");
    return true;
}
