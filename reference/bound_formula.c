/* SPDX-License-Identifier: Apache-2.0 */
/* Rounding units of each backend and route, and the bounds themselves: from sums that the fp64
 * reference took to H, T and sigma of an element and to the bounds of lse and max_logits. Symbols
 * and derivations: docs/numerics.md §3 to §5. */
#include "bound.h"

#include "format.h"

#include <float.h>
#include <math.h>

#define LAMBDA 6.0 /* standard deviations that T allows */
#define RMS 0.425  /* rms relative rounding error in units of u, log-uniform mantissas */
#define LOG2E 1.4426950408889634

static double unit_of(mla_dtype type)
{
    switch (type) {
    case MLA_BF16:
        return 0x1p-8;
    case MLA_F16:
        return 0x1p-11;
    case MLA_F32:
        return 0x1p-24;
    default:
        return 0x1p-53;
    }
}

mla_rounding mla_rounding_of(const mla_problem *p, mla_backend backend, mla_precision precision,
                             mla_route route, mla_dtype out_dtype)
{
    if (route == MLA_ROUTE_AUTO) /* the loosest: absorbed q shares its rounding among all keys */
        route = p->form == MLA_FORM_EXPANDED ? MLA_ROUTE_DENSE_MHA : MLA_ROUTE_DENSE_MQA;
    mla_rounding r = {.route = route, .out = unit_of(out_dtype)};
    r.lse = out_dtype == MLA_F64 ? 0x1p-53 : 0x1p-24;
    if (backend == MLA_BACKEND_CPU) {
        r.accumulate = precision == MLA_PRECISION_FP64 ? 0x1p-53 : 0x1p-24;
        return r;
    }
    double u = unit_of(p->q_dtype);
    bool mqa = route == MLA_ROUTE_SPARSE_MQA || route == MLA_ROUTE_DENSE_MQA;
    r.accumulate = 0x1p-23;
    r.weights = u;
    if (p->form == MLA_FORM_LATENT) {
        r.projected = u;
        r.latent = mqa ? u : 0;
    }
    if (p->form != MLA_FORM_EXPANDED) {
        /* e4m3 times a power of two, and e2m1 times e4m3, fit bf16; fp32 scales don't. */
        bool fits = p->q_dtype == MLA_BF16 ? p->cache_format == MLA_CACHE_BF16 ||
                                                 p->cache_format == MLA_CACHE_MODEL1 ||
                                                 p->cache_format == MLA_CACHE_V41 ||
                                                 p->cache_format == MLA_CACHE_NVFP4_DS_MLA
                                           : p->q_dtype == mla_cache_dtype(p->cache_format);
        r.dequantised = fits ? 0 : u;
    }
    return r;
}

double mla_bound_tiny(double u)
{
    if (u <= 0)
        return 0;
    if (u == 0x1p-11)
        return 0x1p-25;                        /* half the spacing of f16's subnormals */
    return u > 0x1p-30 ? 0x1p-126 : 0x1p-1022; /* bf16 and f32 may be flushed */
}

/* What flushing or rounding takes from one weight, in units of the largest. */
static double weight_tiny(const struct mla_bound_units *u)
{
    double least = u->ua > 0x1p-40 ? 0x1p-126 : 0x1p-1022;
    return fmax(mla_bound_tiny(u->r.weights), least);
}

double mla_bound_huge(double u)
{
    if (u <= 0)
        return INFINITY;
    if (u == 0x1p-11)
        return 65504;
    return u > 0x1p-30 ? 0x1.FEp127 : DBL_MAX;
}

/* Factor on a variance that is a mean of 1/x independent squares, so that a row score z above 1.3
 * has a chance of less than e^-10: P(chi^2_k > k + 2 sqrt(k y) + 2 y) <= e^-y (Laurent, Massart
 * 2000). */
static double few(double x)
{
    return fmax(1, (1 + 2 * sqrt(10 * x) + 20 * x) / (1.3 * 1.3));
}

void mla_bound_element(const struct mla_bound_units *u, const struct mla_bound_row *row,
                       const struct mla_bound_element *e, double *hard, double *statistical,
                       double *sigma)
{
    const mla_rounding *r = &u->r;
    double o = fabs(e->o), n = (double)row->n, nb = ceil(n / 64), L = (double)u->L;
    double tiny = mla_bound_tiny(r->out);
    if (row->empty) { /* exactly 0, whatever rounds */
        *hard = *statistical = *sigma = tiny;
        return;
    }
    double pv = mla_bound_gam(n + 2 * nb, u->ua), gl = mla_bound_gam(L, u->ua);
    double up = r->projected, ud = r->dequantised, ul = r->latent, uw = r->weights;

    /* Spread of V about o, and sums under the perturbed weights (w e^dl instead of w). */
    double lat = e->wn * row->cbar; /* >= sum_j w e^d sum_l |c_jl||w_lc| */
    double fuzz = 0x1p-60 * e->scale + mla_bound_gam(L + 2, 0x1p-24) * lat; /* of fp32 v */
    double rms = sqrt(e->e2) + fuzz, s = sqrt(fmax(0, e->e2 - o * o)) + fuzz;
    double e1 = fmin(e->e1 + fuzz, rms), d = fmin(e1 + o, s);
    double e1p = e1 + row->r * rms, both = fmax(e1, d) + row->r * rms;
    double sums = 1 + row->x1; /* >= sum w e^d */

    /* Numerator: weights, P, sums over keys, errors of v. */
    double top = weight_tiny(u) * row->wmax;
    double x = row->r * s + uw * both + top * (sqrt(n * e->v2) + n * o);
    x += pv * (1 + uw) * (u->mqa && u->latent ? lat : e1p * (1 + up));
    x += mla_bound_gam(n + 2 * nb + 4, u->ua) * (1 + uw) * o * sums;
    if (u->latent && !u->mqa) { /* v = c · w_uv summed in fp32, then rounded */
        x += (up * e1p + gl * (1 + up) * lat + mla_bound_tiny(up) * sums) * (1 + uw);
        if (e->scale >= mla_bound_huge(up))
            x = INFINITY;
    }
    x += ud * (1 + up) * (1 + uw) * (u->latent ? lat : e1p);
    x /= fmax(0, row->np * (1 - uw - pv) - n * top);
    /* Latent output: rounded, then L products with w_uv. */
    if (u->mqa && u->latent) {
        double f = ul + gl * (1 + ul);
        double less = row->np * (1 - uw - pv) - n * top;
        double drift = (row->r * sqrt(row->c2) + (uw + ud + 2 * pv) * row->cbar) / less;
        x += f * (e->olw + e->wn * drift) + mla_bound_tiny(ul) * sqrt(L) * e->wn;
        if (e->olatn >= mla_bound_huge(ul))
            x = INFINITY;
    }
    x += 4 * u->ua * (o + x);
    double h = x + r->out * (o + x) + tiny;
    bool vacuous = !(row->r < 8 * row->np) || !(pv + uw < 0.5) || !(h < INFINITY) ||
                   o + x >= mla_bound_huge(r->out);
    *hard = vacuous ? INFINITY : h;

    /* Independent roundings: variances add. q's rounding is one draw for all keys: its effect is
     * that of keys drawn independently, plus what V and keys share (docs/numerics.md §5). */
    double g2 = sqrt(fmax(0, e->g2)), var = 0, shared = 0, share = 1 / L + row->w2;
    if (u->latent && ud > 0)
        var += RMS * RMS * ud * ud * row->c2q * e->wn * e->wn / L;
    if (u->mqa && u->latent) {
        shared = fmax(e->rho2, row->sq * share) * fmax(0, e->e2_likely - o * o);
        var += RMS * RMS * ul * ul * e->ol2;
        double acc = sqrt(n) * row->cbar + sqrt(L) * e->olatn;
        var += u->ua * u->ua * acc * acc * e->wn * e->wn / L;
    } else {
        var += n * u->ua * u->ua * e1 * e1;
        if (u->latent)
            var += u->ua * u->ua * lat * lat;
    }
    double flushed = weight_tiny(u) * row->wmax;
    var += flushed * flushed * e->v2 / 3;
    double y = LAMBDA * (g2 + o * row->q0 + sqrt(var + shared)) + 4 * u->ua * o;
    *statistical = fmin(*hard, y + r->out * (o + y) + tiny);

    /* Roundings that all columns share come in few draws: room for their chance. */
    double columns = 1 / (double)u->dv, final = RMS * r->out * o;
    double keys = 1 / row->draws + columns, queries = fmin(1, share) + columns;
    *sigma = sqrt(few(keys) * (g2 * g2 + o * o * row->g0) + few(queries) * shared +
                  few(columns) * (var + final * final)) +
             tiny;
}

/* log(sum of P) + max, then the base. */
double mla_bound_lse(const struct mla_bound_units *u, const struct mla_bound_row *row,
                     mla_lse_base base)
{
    const mla_rounding *r = &u->r;
    double lse = fabs(row->lse), scale = base == MLA_LSE_2 ? LOG2E : 1;
    if (row->empty) {
        if (!(lse < INFINITY))
            return 0;
        return scale * lse * (r->lse + 4 * u->ua) + mla_bound_tiny(r->lse);
    }
    double n = (double)row->n, nb = ceil(n / 64), pv = mla_bound_gam(n + 2 * nb + 4, u->ua);
    double share =
        row->x1 * (1 + r->weights + pv) + r->weights + pv + n * weight_tiny(u) * row->wmax;
    /* sum' / sum lies in [np (1 - …), 1 + share] */
    double low = row->np * (1 - r->weights - pv) - n * weight_tiny(u) * row->wmax;
    double x = low > 0 ? fmax(log1p(share), -log(fmin(low, 1))) : INFINITY;
    x += 4 * u->ua * (row->mref + fabs(row->lse - row->mref) + lse + 1) + u->exp_unit;
    return scale * (x + (r->lse + 2 * u->ua) * (lse + x)) + mla_bound_tiny(r->lse);
}

double mla_bound_max(const struct mla_bound_units *u, const struct mla_bound_row *row)
{
    if (row->n == 0)
        return 0;
    double x = row->max_err;
    return x + (u->r.lse + 2 * u->ua) * (fabs(row->max) + x) + mla_bound_tiny(u->r.lse);
}

/* Mean of the keys' independent errors, of q's shared one and of the row sum's roundings. */
double mla_bound_lse_sigma(const struct mla_bound_units *u, const struct mla_bound_row *row,
                           mla_lse_base base)
{
    double scale = base == MLA_LSE_2 ? LOG2E : 1, lse = fabs(row->lse);
    if (row->empty)
        return scale * (lse < INFINITY ? lse : 0) * (u->r.lse + u->ua) + weight_tiny(u);
    double var = row->q0 * row->q0 + (u->mqa && u->latent ? row->sq * row->seen : 0);
    double last = (u->r.lse + 2 * u->ua) * (row->mref + lse + 1) + u->exp_unit / 6;
    return scale * (sqrt(var) + last + sqrt((double)row->n) * u->ua);
}

double mla_bound_max_sigma(const struct mla_bound_units *u, const struct mla_bound_row *row)
{
    if (row->n == 0)
        return weight_tiny(u);
    return sqrt(row->max_var) + (u->r.lse + 2 * u->ua) * fabs(row->max) + weight_tiny(u);
}
