/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the fp64 reference with bounds: bound.c plans it and turns statistics into bounds,
 * bound_block.c computes one block of query rows and heads. Symbols as in docs/numerics.md. */
#ifndef MLA_REFERENCE_BOUND_H
#define MLA_REFERENCE_BOUND_H

#include "reference.h"

enum { BOUND_TILE = 512, BOUND_HEAVY = 32 };

/* What one (row, head) pair leaves behind besides its outputs. */
struct mla_bound_row {
    bool empty;      /* no visible key */
    int64_t n;       /* visible keys */
    double lse, max; /* natural */
    double sink;     /* -inf without one */
    double wmax;     /* largest weight */
    double mref;     /* max(|max|, |sink| where it dominates): size of the scaled logits */
    double r;        /* sqrt(sum w expm1(dl)^2), sink included */
    double x1;       /* sum w expm1(dl) */
    double np;       /* sum w exp(-dl) */
    double cbar, c2; /* sum w e^dl |c|, sum w |c|^2: latent norms */
    double c2q;      /* sum w^2 |c|^2 */
    double q0;       /* sqrt(sum w^2 g), g = variance of the log weight and of P */
    double g0;       /* sum w^2 of the score part of g */
    double w2;       /* sum w^2 */
    double draws;    /* (sum w^2 g)^2 / sum w^4 g^2: keys whose roundings count */
    double seen;     /* |sum w c|^2 / sum w |c|^2: how far q's rounding reaches lse */
    double sq;       /* variance of a logit from rounding the absorbed q */
    double max_err;  /* bound of the largest logit */
    double max_var;  /* variance of the largest logit */
};

/* Statistics of one output element. */
struct mla_bound_element {
    double o, e1, e2, g2, probe; /* sum w v, w|v|, w v^2, w^2 g v^2; q-rounding probe */
    double e2_likely;            /* sum w v^2 where e2 is only a bound of it */
    double v2, scale;            /* sum of v^2 over the keys; largest |v| */
    double wn, olw, ol2;         /* |w_c|, sum |o_l||w_lc|, sum o_l^2 w_lc^2; 0 without w_uv */
    double olatn;                /* |o_lat| */
    double rho2;                 /* share of E2 - o^2 that the probe measured */
};

/* The units of one request, resolved. */
struct mla_bound_units {
    mla_rounding r;
    double ua; /* accumulate, plus the reference's own */
    double exp_unit;
    bool mqa;    /* route runs over latents */
    bool latent; /* w_uk, w_uv exist */
    bool up;     /* k and v are up-projected and rounded: per-head k needed */
    int64_t dk, dn, dr, L, dv;
};

/* Rounding unit u: what flushing or the spacing of subnormals adds, and the largest finite
 * value. */
double mla_bound_tiny(double u);
double mla_bound_huge(double u);

static inline double mla_bound_gam(double m, double u)
{
    double x = m * u;
    return x < 0.5 ? x / (1 - x) : 1.0 / 0.0;
}

/* H, T and sigma of one element; lse bound of one row. docs/numerics.md §4, §5. */
void mla_bound_element(const struct mla_bound_units *u, const struct mla_bound_row *row,
                       const struct mla_bound_element *e, double *hard, double *statistical,
                       double *sigma);
double mla_bound_lse(const struct mla_bound_units *u, const struct mla_bound_row *row,
                     mla_lse_base base);
double mla_bound_max(const struct mla_bound_units *u, const struct mla_bound_row *row);
/* rms of their errors under rounding alone. */
double mla_bound_lse_sigma(const struct mla_bound_units *u, const struct mla_bound_row *row,
                           mla_lse_base base);
double mla_bound_max_sigma(const struct mla_bound_units *u, const struct mla_bound_row *row);

/* Values of v (and k where units.up) of the keys that any wanted row of a request sees, for heads
 * [head, head + heads), in float, each column divided by its largest magnitude. */
struct mla_bound_cache {
    int64_t heads, head;
    int64_t n;           /* keys */
    const int32_t *key;  /* [n] ascending positions */
    const int32_t *slot; /* [seq_len_kv] position -> slot */
    float *v, *k;        /* [heads, n, dv], [heads, n, dn] */
    double *scale;       /* [heads or 1, dv] */
    double *v2;          /* [heads or 1, dv]: sum of v^2 over all n keys, in units of scale^2 */
};

/* One block: query rows that share their keys (a range), or one row with its list. */
struct mla_bound_task {
    const mla_problem *problem;
    const mla_tensors *tensors;
    const struct mla_request *request;
    const struct mla_bound_units *units; /* NULL = no bounds */
    const mla_reference_args *args;
    const struct mla_bound_cache *cache; /* latent problems with bounds, statistics from real v */
    const double *gram_v2;               /* [H, dv]: instead of cache; column scale is 1 */
    int64_t seq_len_kv;
    const int64_t *row;    /* [rows] position of the row in its request */
    int64_t out_row, rows; /* first row in the outputs */
    int64_t head, heads;
    const int32_t *list; /* [n] keys, or NULL = 0 … n-1 under causality */
    int64_t n;
};

/* Tests only: 1 = statistics of MQA routes from every key's v, 2 = from the Gram matrix, 0 = by
 * cost. */
extern int mla_bound_path;

/* 0 done, 1 out of memory, 2 rows share a non-finite key: split into single rows. */
int mla_bound_block(const struct mla_bound_task *task);

#endif
