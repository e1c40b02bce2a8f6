/* SPDX-License-Identifier: Apache-2.0 */
/* Pictures of mla bench --routes: one HTML file with drawings in SVG that needs nothing else, or a
 * PNG by gnuplot. */
#include "common/tool/routes.h"

#include "common/kernel.h"
#include "common/route.h"
#include "common/status.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const colours[MLA_ROUTES] = {"#777", "#1b6ca8", "#d1495b", "#2e933c", "#9b5de5"};

enum { WIDTH = 720, HEIGHT = 420, LEFT = 70, BOTTOM = 50, TOP = 20, RIGHT = 150 };

/* --------------------------------------------------------- sets of rows */

/* Rows of one line of a chart: same heads, same topk and cache, prefill-like. A problem's setting
 * is its string without its batch. */
static void setting_of(const struct route_row *row, char *text, size_t bytes)
{
    const char *at = strstr(row->problem, "batch=");
    size_t before = at ? (size_t)(at - row->problem) : strlen(row->problem);
    const char *after = at ? at + strcspn(at, " ") : "";
    snprintf(text, bytes, "%.*s%s", (int)before, row->problem, *after ? after + 1 : "");
}

/* Settings in order of appearance; out: index of each row's. */
static int settings_of(const struct route_bench *b, int *which, char (*names)[256], int most)
{
    int count = 0;
    for (int i = 0; i < b->count; i++) {
        char name[256];
        setting_of(&b->rows[i], name, sizeof name);
        int at = 0;
        while (at < count && strcmp(names[at], name) != 0)
            at++;
        if (at == most) {
            which[i] = -1;
            continue;
        }
        if (at == count)
            memcpy(names[count++], name, sizeof name);
        which[i] = at;
    }
    return count;
}

static double log_place(double x, double low, double high, double from, double to)
{
    return high > low ? from + (to - from) * log(x / low) / log(high / low) : (from + to) / 2;
}

/* Text inside HTML. */
static void print_text(FILE *f, const char *text)
{
    for (; *text; text++) {
        if (*text == '<' || *text == '>' || *text == '&' || *text == '"')
            fprintf(f, "&#%d;", *text);
        else
            fputc(*text, f);
    }
}

/* -------------------------------------------------------------- SVG charts */

struct axes {
    double x0, x1, y0, y1;
};

static double px(const struct axes *a, double x)
{
    return log_place(x, a->x0, a->x1, LEFT, WIDTH - RIGHT);
}

static double py(const struct axes *a, double y)
{
    return log_place(y, a->y0, a->y1, HEIGHT - BOTTOM, TOP);
}

static void begin_chart(FILE *f, const struct axes *a, const char *x_name, const char *y_name)
{
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" width=\"%d\">\n", WIDTH, HEIGHT, WIDTH);
    for (int e = (int)ceil(log2(a->x0)); exp2(e) <= a->x1 * 1.0001; e++) {
        double x = exp2(e);
        bool label = e % (a->x1 / a->x0 > 300 ? 2 : 1) == 0;
        fprintf(f, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" class=\"g\"/>\n", px(a, x),
                TOP, px(a, x), HEIGHT - BOTTOM);
        if (label && x >= 1024)
            fprintf(f, "<text x=\"%.1f\" y=\"%d\" class=\"c\">%gk</text>\n", px(a, x),
                    HEIGHT - BOTTOM + 18, x / 1024);
        else if (label)
            fprintf(f, "<text x=\"%.1f\" y=\"%d\" class=\"c\">%g</text>\n", px(a, x),
                    HEIGHT - BOTTOM + 18, x);
    }
    for (int e = (int)ceil(log10(a->y0) - 1e-9); pow(10, e) <= a->y1 * 1.0001; e++) {
        double y = pow(10, e);
        fprintf(f,
                "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" class=\"g\"/>"
                "<text x=\"%d\" y=\"%.1f\" class=\"r\">%g</text>\n",
                LEFT, py(a, y), WIDTH - RIGHT, py(a, y), LEFT - 6, py(a, y) + 4, y);
    }
    fprintf(f,
            "<text x=\"%d\" y=\"%d\" class=\"c\">%s</text><text transform=\"translate(16,%d) "
            "rotate(-90)\" class=\"c\">%s</text>\n",
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_name, (TOP + HEIGHT - BOTTOM) / 2, y_name);
}

static void legend(FILE *f, int line, const char *colour, const char *name)
{
    fprintf(f,
            "<rect x=\"%d\" y=\"%d\" width=\"12\" height=\"12\" fill=\"%s\"/><text x=\"%d\" "
            "y=\"%d\">%s</text>\n",
            WIDTH - RIGHT + 12, TOP + 20 * line, colour, WIDTH - RIGHT + 30, TOP + 20 * line + 10,
            name);
}

static int by_length(const void *a, const void *b)
{
    const struct route_row *x = *(const struct route_row *const *)a,
                           *y = *(const struct route_row *const *)b;
    if (x->query_len != y->query_len)
        return x->query_len < y->query_len ? -1 : 1;
    return (x > y) - (x < y);
}

/* Rows of a setting and route, shortest first. */
static int line_of(const struct route_bench *b, const int *which, int setting, int route,
                   const struct route_row **rows)
{
    int n = 0;
    for (int i = 0; i < b->count; i++)
        if (which[i] == setting && (int)b->rows[i].route == route)
            rows[n++] = &b->rows[i];
    qsort(rows, (size_t)n, sizeof *rows, by_length);
    return n;
}

/* Query tokens at which line b becomes faster than line a for good; 0 = never in here. */
static double crossing(const struct route_row **a, int na, const struct route_row **b, int nb)
{
    double found = 0, last_x = 0, last = 0;
    for (int i = 0; i < na; i++)
        for (int j = 0; j < nb; j++) {
            if (a[i]->query_len != b[j]->query_len || a[i]->seq_len_kv != b[j]->seq_len_kv)
                continue;
            double x = (double)a[i]->query_len, now = log(b[j]->median / a[i]->median);
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

static void time_chart(FILE *f, const struct route_bench *b, const int *which, int setting,
                       const char *name, const struct route_row **rows,
                       const struct route_row **more)
{
    struct axes a = {INFINITY, 0, INFINITY, 0};
    for (int i = 0; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        if (which[i] != setting)
            continue;
        a.x0 = fmin(a.x0, (double)r->query_len);
        a.x1 = fmax(a.x1, (double)r->query_len);
        a.y0 = fmin(a.y0, r->median * 1e6);
        a.y1 = fmax(a.y1, r->median * 1e6);
    }
    if (!(a.x1 > a.x0))
        return; /* one length has no curve */
    a.y0 = pow(10, floor(log10(a.y0)));
    a.y1 = pow(10, ceil(log10(a.y1)));
    fprintf(f, "<h3>");
    print_text(f, name);
    fprintf(f, "</h3>\n");
    begin_chart(f, &a, "query tokens of the batch", "microseconds");
    int shown = 0;
    for (int route = 0; route < MLA_ROUTES; route++) {
        int n = line_of(b, which, setting, route, rows);
        if (!n)
            continue;
        fprintf(f, "<polyline class=\"l\" stroke=\"%s\"%s points=\"", colours[route],
                route == MLA_ROUTE_AUTO ? " stroke-dasharray=\"4 4\"" : "");
        for (int i = 0; i < n; i++)
            fprintf(f, "%.1f,%.1f ", px(&a, (double)rows[i]->query_len),
                    py(&a, rows[i]->median * 1e6));
        fprintf(f, "\"/>\n");
        legend(f, shown++, colours[route],
               route == MLA_ROUTE_AUTO ? "as routed" : mla_route_name((mla_route)route));
    }
    int masked = line_of(b, which, setting, MLA_ROUTE_MASKED_MHA, rows);
    int sparse = line_of(b, which, setting, MLA_ROUTE_SPARSE_MQA, more);
    double x = crossing(rows, masked, more, sparse);
    if (x > 0)
        fprintf(f,
                "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" class=\"x\"/><text x=\"%.1f\" "
                "y=\"%d\">crossover %.0f</text>\n",
                px(&a, x), TOP, px(&a, x), HEIGHT - BOTTOM, px(&a, x) + 4, TOP + 12, x);
    fprintf(f, "</svg>\n");
}

/* Speed-up of the fastest route over sparse MQA (the route that always serves top-k), by heads and
 * batch. */
static void heat_map(FILE *f, const struct route_bench *b)
{
    fprintf(f, "<h2>Sparse MQA over the fastest route</h2>\n<table><tr><th>heads</th><th>batch</th>"
               "<th>fastest</th><th>speed-up</th></tr>\n");
    for (int i = 0; i < b->count; i++) {
        const struct route_row *base = &b->rows[i], *best = base;
        if (base->route != MLA_ROUTE_SPARSE_MQA)
            continue;
        for (int j = 0; j < b->count; j++)
            if (strcmp(b->rows[j].problem, base->problem) == 0 &&
                b->rows[j].route != MLA_ROUTE_AUTO && b->rows[j].median < best->median)
                best = &b->rows[j];
        double gain = base->median / best->median;
        double light = 97 - 55 * fmin(1, log(gain) / log(8));
        fprintf(f, "<tr><td>%lld</td><td>", (long long)base->heads);
        print_text(f, base->batch);
        fprintf(f, "</td><td>%s</td><td style=\"background:hsl(%d,60%%,%.0f%%)\">%.2f</td></tr>\n",
                mla_route_name(best->route), best->route == MLA_ROUTE_MASKED_MHA ? 350 : 130, light,
                gain);
    }
    fprintf(f, "</table>\n");
}

static void roofline(FILE *f, const struct route_bench *b)
{
    struct axes a = {INFINITY, 0, INFINITY, 0};
    for (int i = 0; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        a.x0 = fmin(a.x0, r->flop / r->bytes);
        a.x1 = fmax(a.x1, r->flop / r->bytes);
        a.y0 = fmin(a.y0, r->flop / r->median * 1e-12);
        a.y1 = fmax(a.y1, r->flop / r->median * 1e-12);
    }
    if (!(a.x1 > a.x0))
        return;
    a.y0 = pow(10, floor(log10(a.y0)));
    a.y1 = pow(10, ceil(log10(a.y1)));
    fprintf(f, "<h2>Useful FLOP over bytes that must move</h2>\n");
    begin_chart(f, &a, "FLOP a byte", "TFLOP/s");
    bool used[MLA_ROUTES] = {false};
    for (int i = 0; i < b->count; i++) {
        const struct route_row *r = &b->rows[i];
        used[r->route] = true;
        fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>",
                px(&a, r->flop / r->bytes), py(&a, r->flop / r->median * 1e-12), colours[r->route]);
        print_text(f, r->problem);
        fprintf(f, "</title></circle>\n");
    }
    int shown = 0;
    for (int route = 0; route < MLA_ROUTES; route++)
        if (used[route])
            legend(f, shown++, colours[route],
                   route == MLA_ROUTE_AUTO ? "as routed" : mla_route_name((mla_route)route));
    fprintf(f, "</svg>\n");
}

static void html(FILE *f, const struct route_bench *b, const char *about, const int *which,
                 char (*names)[256], int settings, const struct route_row **rows)
{
    fprintf(f, "<!doctype html><meta charset=\"utf-8\"><title>Routes</title><style>body{font:14px "
               "sans-serif;margin:2em;max-width:60em}svg text{font:12px sans-serif}.g{stroke:#ddd}"
               ".l{fill:none;stroke-width:2}.x{stroke:#000;stroke-dasharray:2 3}.c{text-anchor:"
               "middle}.r{text-anchor:end}td,th{padding:2px 10px;text-align:left}</style>\n"
               "<h1>Time of a batch by route</h1>\n<p>");
    print_text(f, about);
    fprintf(f, "</p>\n");
    for (int s = 0; s < settings; s++)
        time_chart(f, b, which, s, names[s], rows, rows + b->count);
    heat_map(f, b);
    roofline(f, b);
}

/* ------------------------------------------------------------------- PNG */

static bool png(const struct route_bench *b, const int *which, int settings,
                const struct route_row **rows, const char *path)
{
    FILE *f = popen("gnuplot 2>/dev/null", "w");
    if (!f)
        return false;
    fprintf(f, "set terminal png size 900,560\nset output \"");
    for (const char *c = path; *c; c++)
        fprintf(f, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    fprintf(f, "\"\nset logscale xy\nset grid\nset key outside right\nset xlabel 'query tokens of "
               "the batch'\nset ylabel 'microseconds'\nplot ");
    bool first = true;
    for (int pass = 0; pass < 2; pass++)
        for (int s = 0; s < settings; s++)
            for (int route = 0; route < MLA_ROUTES; route++) {
                int n = line_of(b, which, s, route, rows);
                if (n < 1)
                    continue;
                if (pass == 0)
                    fprintf(f, "%s'-' with linespoints lc rgb '%s' dt %d title '%s, %lld heads'",
                            first ? "" : ", ", colours[route], s % 5 + 1,
                            route == MLA_ROUTE_AUTO ? "as routed"
                                                    : mla_route_name((mla_route)route),
                            (long long)rows[0]->heads);
                for (int i = 0; i < n && pass == 1; i++)
                    fprintf(f, "%s%lld %.3f\n", i ? "" : "\n", (long long)rows[i]->query_len,
                            rows[i]->median * 1e6);
                if (pass == 1)
                    fprintf(f, "e");
                first = false;
            }
    fprintf(f, "\n");
    int status = pclose(f);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 && access(path, R_OK) == 0;
}

int mla_route_plot(const struct route_bench *b, const char *about, const char *path)
{
    enum { MOST_SETTINGS = 64 };
    static char names[MOST_SETTINGS][256];
    size_t length = strlen(path);
    bool picture = length > 4 && strcmp(path + length - 4, ".png") == 0;
    int *which = mla_alloc((size_t)b->count + 1, sizeof *which);
    const struct route_row **rows = mla_alloc(2 * (size_t)b->count + 2, sizeof *rows);
    int exit_status = EXIT_DEVICE;
    if (!which || !rows) {
        mla_usage(b->command, "--plot: no memory for %d rows", b->count);
    } else if (picture) {
        int settings = settings_of(b, which, names, MOST_SETTINGS);
        if (png(b, which, settings, rows, path))
            exit_status = EXIT_DONE;
        else
            mla_usage(b->command,
                      "--plot: gnuplot did not write '%.300s'; want gnuplot, or a name "
                      "that ends in .html",
                      path);
    } else {
        int settings = settings_of(b, which, names, MOST_SETTINGS);
        FILE *f = fopen(path, "w");
        if (f)
            html(f, b, about, which, names, settings, rows);
        if (f && fclose(f) == 0)
            exit_status = EXIT_DONE;
        else
            mla_usage(b->command, "--plot: cannot write '%.300s': %s", path, strerror(errno));
    }
    mla_free(which);
    mla_free(rows);
    return exit_status;
}
