/* SPDX-License-Identifier: Apache-2.0 */
/* The verdict as text and as JSON. */
#include "validation/check.h"

#include "common/kernel.h"
#include "common/text.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

static const char *const tensor_names[3] = {"out", "lse", "max_logits"};

static const char *verdict_name(enum mla_verdict v)
{
    static const char *const names[] = {"ok", "weak", "mistrusted", "FAIL"};
    return names[v];
}

/* 0.31, 41, 3.2e+07: two digits that matter. */
static void print_share(FILE *to, double x)
{
    if (x == 0)
        fprintf(to, "0");
    else if (x < 0.01)
        fprintf(to, "%.0e", x);
    else if (x < 10)
        fprintf(to, "%.2g", x);
    else if (x < 1e4)
        fprintf(to, "%.0f", x);
    else
        fprintf(to, "%.1e", x);
}

/* "out  192 of 131072 bad, worst 41x allowed, 3 nan or inf on one side", then what chance says. */
static void print_tensor(FILE *to, int i, const struct mla_check_tensor *t)
{
    if (t->bad || t->vacuous) {
        fprintf(to, "  %-10s  %" PRId64 " of %" PRId64 " bad", tensor_names[i], t->bad,
                t->elements);
        if (t->share_hard > 1) {
            fprintf(to, ", worst ");
            print_share(to, t->share_hard);
            fprintf(to, "x allowed");
        }
        if (t->nonfinite)
            fprintf(to, ", %" PRId64 " nan or inf on one side", t->nonfinite);
        if (t->unwritten)
            fprintf(to, ", %" PRId64 " never written", t->unwritten);
        if (t->vacuous)
            fprintf(to, ", %" PRId64 " without a bound", t->vacuous);
    } else {
        fprintf(to, "  %-10s  within bounds, ", tensor_names[i]);
        print_share(to, t->share_hard);
        fprintf(to, " of allowed");
    }
    if (t->bad_t) {
        fprintf(to, "; %" PRId64 " beyond what rounding makes, worst ", t->bad_t);
        print_share(to, t->share_statistical);
        fprintf(to, "x");
    }
    if (t->bad_z) {
        fprintf(to, "; %" PRId64 " rows with z > 1.3, worst ", t->bad_z);
        print_share(to, t->worst_z);
    }
    if (t->drift > 1) {
        fprintf(to, "; mean error ");
        print_share(to, t->drift);
        fprintf(to, "x what chance allows");
    }
    fprintf(to, "\n");
}

static void print_shares(FILE *to, const struct mla_check_report *r)
{
    const struct mla_check_tensor *t[3] = {&r->out, &r->lse, &r->max_logits};
    for (int i = 0; i < 3; i++)
        if (t[i]->present) {
            fprintf(to, "%s%s ", i ? "  " : "", i == 2 ? "max" : tensor_names[i]);
            print_share(to, t[i]->share_hard);
        }
    fprintf(to, " of allowed;  T ");
    print_share(to, r->out.share_statistical);
    fprintf(to, "  z %.2f", r->out.worst_z);
}

static void name_point(char *text, size_t bytes, const struct mla_check_point *x)
{
    int n = snprintf(text, bytes, "%s[request %" PRId64 " query %" PRId64 " head %" PRId64,
                     tensor_names[x->tensor], x->request, x->position, x->head);
    if (n <= 0 || (size_t)n >= bytes)
        return;
    if (x->dim >= 0)
        snprintf(text + n, bytes - (size_t)n, " d %" PRId64 "]", x->dim);
    else
        snprintf(text + n, bytes - (size_t)n, "]");
}

/* What a file holds, which has no problem string. */
static void describe_file(const struct mla_case *c, char *text, size_t bytes)
{
    const mla_problem *p = &c->problem;
    struct mla_text t = {.at = text, .bytes = bytes};
    int64_t longest = 0;
    for (int64_t b = 0; b < p->batch; b++)
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    mla_text_add(&t, "%s b=%" PRId64 " queries=%" PRId64 " skv<=%" PRId64 " hq=%" PRId64,
                 mla_form_name(p->form), p->batch, mla_total_q(p), longest, p->heads_q);
    if (p->topk)
        mla_text_add(&t, " topk=%" PRId64, p->topk);
    if (p->form != MLA_FORM_EXPANDED)
        mla_text_add(&t, " cache=%s", mla_cache_format_name(p->cache_format));
    if (*c->fill)
        mla_text_add(&t, " fill=%s seed=%" PRIu64, c->fill, c->seed);
}

/* The problem in one line: its string, or in text what a file holds. */
static const char *case_line(const struct mla_case *c, char *text, size_t bytes)
{
    if (c->text && *c->text)
        return c->text;
    describe_file(c, text, bytes);
    return text;
}

void mla_check_print(FILE *to, const struct mla_case *c, const struct mla_check_options *o,
                     const struct mla_check_report *r)
{
    char line[256];
    fprintf(to, "%-4s  %s  %s", verdict_name(r->verdict), o->name ? o->name : "result",
            case_line(c, line, sizeof line));
    if (o->rows > 0 && o->rows < mla_total_q(&c->problem))
        fprintf(to, "  (%" PRId64 " of %" PRId64 " query rows)", o->rows, mla_total_q(&c->problem));
    if (r->verdict != MLA_FAIL) {
        fprintf(to, "  ");
        print_shares(to, r);
        fprintf(to, "\n");
        if (*r->reason)
            fprintf(to, "  %s\n", r->reason);
        if (r->verdict == MLA_MISTRUSTED)
            fprintf(to,
                    "  passing proves little: run the fills normal, diffuse and counting too\n");
        return;
    }
    fprintf(to, "\n");
    const struct mla_check_tensor *t[3] = {&r->out, &r->lse, &r->max_logits};
    if (!t[0]->bad && !t[1]->bad && !t[2]->bad)
        fprintf(to, "  %s\n", r->reason);
    for (int i = 0; i < 3; i++)
        if (t[i]->present)
            print_tensor(to, i, t[i]);
    if (*r->where)
        fprintf(to, "  where: %s\n", r->where);
    if (*r->hint)
        fprintf(to, "  hint:  %s\n", r->hint);
    int width = 0;
    char name[128];
    for (int i = 0; i < r->num_points; i++) {
        name_point(name, sizeof name, &r->points[i]);
        width = (int)strlen(name) > width ? (int)strlen(name) : width;
    }
    for (int i = 0; i < r->num_points; i++) {
        const struct mla_check_point *x = &r->points[i];
        name_point(name, sizeof name, x);
        fprintf(to, "  %-*s  want %-13.7g got %-13.7g", width, name, x->want,
                isnan(x->got) ? NAN : x->got); /* no "-nan" */
        if (isfinite(x->want) && isfinite(x->got)) {
            fprintf(to, " diff %-8.1e allowed %-8.1e", fabs(x->got - x->want), x->hard);
            if (x->statistical > 0)
                fprintf(to, " likely %-8.1e", x->statistical);
        }
        fprintf(to, "\n");
    }
    fprintf(to,
            "  usual checks on out: rtol = atol = 1e-2 %s (%" PRId64
            " outside), cosine error %.1e, "
            "relative error %.1e\n",
            r->rtol_bad ? "fails" : "passes", r->rtol_bad, r->cosine_error, r->frobenius_error);
    if (o->rerun)
        fprintf(to, "  rerun: %s\n", o->rerun);
}

/* JSON has no inf and nan: as strings. */
static json_t *number(double x)
{
    return isnan(x)   ? json_string("nan")
           : isinf(x) ? json_string(x > 0 ? "inf" : "-inf")
                      : json_real(x);
}

static json_t *tensor_json(const struct mla_check_tensor *t, bool out)
{
    if (!t->present)
        return json_null();
    json_t *j = json_pack("{s:I, s:I, s:I, s:I, s:I, s:o}", "elements", (json_int_t)t->elements,
                          "bad", (json_int_t)t->bad, "nonfinite", (json_int_t)t->nonfinite,
                          "unwritten", (json_int_t)t->unwritten, "vacuous", (json_int_t)t->vacuous,
                          "share_hard", number(t->share_hard));
    if (!j)
        return NULL;
    json_object_set_new(j, "share_statistical", number(t->share_statistical));
    json_object_set_new(j, "elements_over_statistical", json_integer((json_int_t)t->bad_t));
    if (out) {
        json_object_set_new(j, "worst_z", number(t->worst_z));
        json_object_set_new(j, "rows_over_z", json_integer((json_int_t)t->bad_z));
    } else {
        json_object_set_new(j, "drift", number(t->drift));
    }
    return j;
}

struct json_t *mla_check_json(const struct mla_case *c, const struct mla_check_options *o,
                              const struct mla_check_report *r)
{
    static const char *const modes[] = {"default", "strict", "hard"};
    json_t *points = json_array(), *j = json_object();
    if (!points || !j) {
        json_decref(points);
        json_decref(j);
        return NULL;
    }
    for (int i = 0; i < r->num_points; i++) {
        const struct mla_check_point *x = &r->points[i];
        json_t *p = json_object();
        json_object_set_new(p, "tensor", json_string(tensor_names[x->tensor]));
        json_object_set_new(p, "request", json_integer((json_int_t)x->request));
        json_object_set_new(p, "query", json_integer((json_int_t)x->position));
        json_object_set_new(p, "row", json_integer((json_int_t)x->row));
        json_object_set_new(p, "head", json_integer((json_int_t)x->head));
        if (x->dim >= 0)
            json_object_set_new(p, "dim", json_integer((json_int_t)x->dim));
        json_object_set_new(p, "want", number(x->want));
        json_object_set_new(p, "got", number(x->got));
        json_object_set_new(p, "hard", number(x->hard));
        if (x->statistical > 0)
            json_object_set_new(p, "statistical", number(x->statistical));
        json_array_append_new(points, p);
    }
    char verdict[16], line[256];
    snprintf(verdict, sizeof verdict, "%s",
             r->verdict == MLA_FAIL ? "fail" : verdict_name(r->verdict));
    json_object_set_new(j, "verdict", json_string(verdict));
    json_object_set_new(j, "name", json_string(o->name ? o->name : ""));
    json_object_set_new(j, "problem", json_string(case_line(c, line, sizeof line)));
    json_object_set_new(j, "fill", json_string(c->fill));
    json_object_set_new(j, "seed", json_integer((json_int_t)c->seed));
    json_object_set_new(j, "mode", json_string(modes[o->mode]));
    json_object_set_new(j, "rows", json_integer((json_int_t)o->rows));
    json_object_set_new(j, "reason", json_string(r->reason));
    json_object_set_new(j, "where", json_string(r->where));
    json_object_set_new(j, "hint", json_string(r->hint));
    json_object_set_new(j, "out", tensor_json(&r->out, true));
    json_object_set_new(j, "lse", tensor_json(&r->lse, false));
    json_object_set_new(j, "max_logits", tensor_json(&r->max_logits, false));
    json_object_set_new(j, "points", points);
    json_t *usual = json_object();
    json_object_set_new(usual, "rtol_atol_1e_2_outside", json_integer((json_int_t)r->rtol_bad));
    json_object_set_new(usual, "cosine_error", number(r->cosine_error));
    json_object_set_new(usual, "frobenius_error", number(r->frobenius_error));
    json_object_set_new(j, "usual_checks", usual);
    if (o->rerun)
        json_object_set_new(j, "rerun", json_string(o->rerun));
    return j;
}
