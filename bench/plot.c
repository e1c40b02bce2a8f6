/* SPDX-License-Identifier: Apache-2.0 */
/* Pictures of mla bench --routes: an HTML file that needs nothing else, single drawings as SVG, or
 * a PNG by gnuplot. */
#include "chart.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct {
    const char *ending;
    bool (*draw)(FILE *f, const struct route_bench *b, const char *about);
} drawings[] = {{".time.svg", mla_chart_times},
                {".heat.svg", mla_chart_heat},
                {".roofline.svg", mla_chart_roofline},
                {".mixed.svg", mla_chart_mixed},
                {".svg", mla_chart_times}}; /* last: any other name */

enum { DRAWINGS = sizeof drawings / sizeof *drawings };

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a > b && strcmp(text + a - b, end) == 0;
}

static void html(FILE *f, const struct route_bench *b, const char *about)
{
    fprintf(f, "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Routes</title>"
               "<style>body{margin:1.5em}svg{display:block;max-width:100%%;height:auto;"
               "margin-bottom:1.5em}</style>\n");
    for (int d = 0; d < DRAWINGS - 1; d++)
        drawings[d].draw(f, b, about);
    fprintf(f, "</html>\n");
}

/* ------------------------------------------------------------------- PNG */

static void png_panel(FILE *f, const struct chart_set *s, const struct chart_point *points, int n)
{
    char title[160];
    bool first = true;
    mla_chart_title(s, title, sizeof title);
    double x = mla_chart_crossing(points, n);
    fprintf(f, "unset arrow\nset title \"%s\"\n", title);
    if (x > 0)
        fprintf(f,
                "set arrow from %g, graph 0 to %g, graph 1 nohead dt 2\nset label 1 \" crossover "
                "%.0f \" at %g, graph 0.05 %s\n",
                x, x, x, x,
                x * x > (double)points[0].queries * (double)points[n - 1].queries ? "right"
                                                                                  : "left");
    else
        fprintf(f, "unset label 1\n");
    for (int pass = 0; pass < 2; pass++)
        for (int r = 0; r < MLA_ROUTES; r++) {
            bool any = false;
            for (int i = 0; i < n; i++)
                any |= points[i].row[r] != NULL;
            if (!any)
                continue;
            if (pass == 0)
                fprintf(f, "%s'-' with linespoints pt 7 ps 0.6 lw 2 lc rgb '%s' dt %d title '%s'",
                        first ? "plot " : ", ", mla_chart_colour(WAY_FORCED, (mla_route)r),
                        r == MLA_ROUTE_AUTO ? 2 : 1,
                        r == MLA_ROUTE_AUTO ? "as routed" : mla_route_name((mla_route)r));
            first = false;
            if (pass == 0)
                continue;
            for (int i = 0; i < n; i++)
                if (points[i].row[r])
                    fprintf(f, "\n%lld %.3f", (long long)points[i].queries,
                            points[i].row[r]->cold.median * 1e6);
            fprintf(f, "\ne");
        }
    fprintf(f, "\n");
}

static bool png(const struct route_bench *b, const char *path)
{
    enum { LEAST_POINTS = 3, MOST_PANELS = 8 };
    static struct chart_point points[CHART_POINTS];
    struct chart_set sets[CHART_SETS];
    int count = mla_chart_sets(b, sets), panels = 0;
    for (int s = 0; s < count; s++)
        if (mla_chart_points(b, &sets[s], points) >= LEAST_POINTS && panels < MOST_PANELS)
            sets[panels++] = sets[s];
    FILE *f = panels ? popen("gnuplot 2>/dev/null", "w") : NULL;
    if (!f)
        return false;
    void (*before)(int) = signal(SIGPIPE, SIG_IGN); /* where there is no gnuplot */
    int columns = panels > 1 ? 2 : 1, lines = (panels + columns - 1) / columns;
    fprintf(f, "set terminal png size %d,%d\nset output \"", columns * 640, lines * 440);
    for (const char *c = path; *c; c++)
        fprintf(f, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    fprintf(f,
            "\"\nset logscale x 2\nset logscale y\nset grid\nset key top left\nset xlabel 'query "
            "tokens of a request'\nset ylabel 'microseconds'\nset multiplot layout %d,%d\n",
            lines, columns);
    for (int s = 0; s < panels; s++)
        png_panel(f, &sets[s], points, mla_chart_points(b, &sets[s], points));
    fprintf(f, "unset multiplot\n");
    int status = pclose(f);
    signal(SIGPIPE, before);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 && access(path, R_OK) == 0;
}

static int written(const struct route_bench *b, FILE *f, const char *path)
{
    if (f && fclose(f) == 0)
        return EXIT_DONE;
    mla_usage(b->command, "--plot: cannot write '%.300s': %s", path, strerror(errno));
    return EXIT_DEVICE;
}

int mla_route_plot(const struct route_bench *b, const char *about, const char *path)
{
    if (ends_with(path, ".png")) {
        if (png(b, path))
            return EXIT_DONE;
        mla_usage(b->command,
                  "--plot: gnuplot did not write '%.300s'; want gnuplot and at least three lengths "
                  "of one setting, or a name that ends in .html",
                  path);
        return EXIT_DEVICE;
    }
    for (int d = 0; d < DRAWINGS; d++) {
        if (!ends_with(path, drawings[d].ending))
            continue;
        if (!drawings[d].draw(NULL, b, about)) {
            mla_usage(b->command,
                      "--plot: '%.300s': got no rows for this drawing, want more "
                      "problems",
                      path);
            return EXIT_DEVICE;
        }
        FILE *f = fopen(path, "w");
        if (f)
            drawings[d].draw(f, b, about);
        return written(b, f, path);
    }
    FILE *f = fopen(path, "w");
    if (f)
        html(f, b, about);
    return written(b, f, path);
}
