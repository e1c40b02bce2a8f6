/* SPDX-License-Identifier: Apache-2.0 */
/* Case generator: which keys each query row lists. Lists are unordered, holes and tails hold what
 * callers really leave there, and everything past topk_lens is poison. */
#include "fill.h"

#include "common/status.h"

#include <limits.h>
#include <omp.h>

#define TILE 64       /* the key tile of most kernels: edges are planted and tiles hidden by it */
#define SINK_TOKENS 4 /* fill sink: first keys that every row lists */
#define HOT_ROWS 64   /* fill sink: rows that share one set of heavy hitters */

/* Edges of eighths of the request, where splits of the keys begin. */
static bool is_split_edge(int64_t n, int64_t j)
{
    for (int64_t s = 0; s < 8; s++)
        if (n * s / 8 == j || n * s / 8 - 1 == j)
            return true;
    return false;
}

bool mla_fill_is_edge(const struct fill *f, int64_t b, int64_t j)
{
    int64_t page = f->problem->page_size, n = f->problem->seq_lens_kv[b];
    if (j % TILE == 0 || j % TILE == TILE - 1 || j == n - 1)
        return true;
    if (page > 1 && (j % page == 0 || j % page == page - 1))
        return true;
    return is_split_edge(n, j);
}

/* r-th of the edges {0, period-1, period, 2·period-1, …} below end. */
static int64_t pick_edge(uint64_t word, int64_t period, int64_t end)
{
    int64_t count = 2 * (end / period) + (end % period > 0);
    int64_t r = mla_random_below(word, count);
    return r / 2 * period + (r & 1 ? period - 1 : 0);
}

int64_t mla_fill_needle(const struct fill *f, int64_t b, int64_t i)
{
    const mla_problem *p = f->problem;
    int64_t n = p->seq_lens_kv[b], end = mla_fill_visible(f, b, i);
    if (end == 0)
        return -1;
    uint64_t row = (uint64_t)(p->cu_seqlens_q[b] + i);
    uint64_t word = mla_random_word(f->key[STREAM_NEEDLE], 2 * row);
    uint64_t kind = mla_random_word(f->key[STREAM_NEEDLE], 2 * row + 1) & 3;
    if (kind == 1 && p->page_size > 1)
        return pick_edge(word, p->page_size, end);
    if (kind == 2) {
        int64_t r = mla_random_below(word, 16), j = n * (r / 2) / 8 - (r & 1);
        if (j >= 0 && j < end)
            return j;
    }
    if (kind == 3)
        return end == n ? n - 1 : 0;
    return pick_edge(word, TILE, end);
}

/* Scratch of one thread. */
struct lister {
    int32_t *identity; /* [max seq_len_kv] 0, 1, 2, …; restored after each draw */
    int32_t *hot;      /* [topk] heavy hitters of the current block of rows */
    int64_t hot_block; /* -1 at first */
};

/* m of the positions first … first+n-1, uniformly without repetition and in random order: a
 * Fisher-Yates shuffle of its first m places, undone afterwards. */
static void draw(struct lister *s, uint64_t key, uint64_t *counter, int64_t first, int64_t n,
                 int64_t m, int32_t *out)
{
    uint64_t start = *counter;
    int32_t *a = s->identity;
    for (int64_t k = 0; k < m; k++) {
        int64_t other = k + mla_random_below(mla_random_word(key, start + (uint64_t)k), n - k);
        int32_t t = a[k];
        a[k] = a[other];
        a[other] = t;
        out[k] = (int32_t)(first + a[k]);
    }
    for (int64_t k = m - 1; k >= 0; k--) {
        int64_t other = k + mla_random_below(mla_random_word(key, start + (uint64_t)k), n - k);
        int32_t t = a[k];
        a[k] = a[other];
        a[other] = t;
    }
    *counter = start + (uint64_t)m;
}

static void shuffle(uint64_t key, uint64_t *counter, int32_t *list, int64_t n)
{
    for (int64_t k = n - 1; k > 0; k--) {
        int64_t other = mla_random_below(mla_random_word(key, (*counter)++), k + 1);
        int32_t t = list[k];
        list[k] = list[other];
        list[other] = t;
    }
}

/* Fill sink, K < end: the first tokens, the most recent quarter, and heavy hitters: the hottest key
 * of each of `count` equal strata, where a key's heat lasts for the whole request. Rows of a block
 * share them, except one in eight that a row picks for itself. */
static int64_t list_sink(const struct fill *f, struct lister *s, int64_t b, int64_t i, int64_t end,
                         int32_t *out)
{
    const mla_problem *p = f->problem;
    int64_t k = p->topk, sinks = k < SINK_TOKENS ? k : SINK_TOKENS;
    int64_t row = p->cu_seqlens_q[b] + i, block = row / HOT_ROWS;
    /* The block's first row bounds the strata, so that all its rows have the same ones. */
    int64_t i0 = block * HOT_ROWS - p->cu_seqlens_q[b];
    int64_t recent = (k - sinks) / 4;
    int64_t top = mla_fill_visible(f, b, i0 < 0 ? 0 : i0) - recent;
    int64_t count = k - sinks - recent, width = top - sinks;
    if (count > width)
        count = width < 0 ? 0 : width;
    recent = k - sinks - count;
    if (s->hot_block != block * p->batch + b) {
        s->hot_block = block * p->batch + b;
        for (int64_t c = 0; c < count; c++) {
            int64_t from = sinks + width * c / count, to = sinks + width * (c + 1) / count;
            uint64_t best = 0;
            for (int64_t j = from; j < to; j++) {
                uint64_t heat =
                    mla_random_word(f->key[STREAM_HEAT], (uint64_t)(f->kv_start[b] + j));
                if (j == from || heat > best) {
                    best = heat;
                    s->hot[c] = (int32_t)j;
                }
            }
        }
    }
    int64_t m = 0;
    for (int64_t j = 0; j < sinks; j++)
        out[m++] = (int32_t)j;
    for (int64_t c = 0; c < count; c++) {
        int64_t from = sinks + width * c / count, to = sinks + width * (c + 1) / count;
        uint64_t w = mla_random_word(f->key[STREAM_LIST], (uint64_t)(row * k + c));
        out[m++] = w & 7 ? s->hot[c] : (int32_t)(from + mla_random_below(w, to - from));
    }
    for (int64_t j = end - recent; j < end; j++)
        out[m++] = (int32_t)j;
    return m;
}

/* Both keys of random pairs (2j, 2j+1), so that what cancels stays together. */
static int64_t list_pairs(const struct fill *f, struct lister *s, uint64_t key, uint64_t *counter,
                          int64_t end, int32_t *out)
{
    int64_t pairs = end / 2, m = f->problem->topk / 2 < pairs ? f->problem->topk / 2 : pairs;
    draw(s, key, counter, 0, pairs, m, out);
    for (int64_t k = m - 1; k >= 0; k--) {
        int32_t pair = out[k];
        out[2 * k] = 2 * pair;
        out[2 * k + 1] = 2 * pair + 1;
    }
    return 2 * m;
}

/* Something that must be ignored: negative, past the request, or once a row in the causal
 * future. */
static int32_t hole(uint64_t word, int64_t n, int64_t end, bool *future)
{
    static const int32_t bad[] = {INT_MIN, -123456, -1, INT_MAX, 2147480000};
    int64_t r = mla_random_below(word, 7);
    if (r < 5)
        return bad[r];
    if (r == 5 || *future || end >= n)
        return (int32_t)n;
    *future = true;
    return (int32_t)end;
}

/* What a buffer holds past topk_lens: earlier contents, often valid keys and repeated ones. */
static int32_t stale(uint64_t word, int64_t n)
{
    bool none = true;
    return (word & 3) && n > 0 ? (int32_t)mla_random_below(word, n) : hole(word, n, n, &none);
}

static void list_row(const struct fill *f, struct lister *s, int64_t row, int32_t *out,
                     int32_t *len_out)
{
    const mla_problem *p = f->problem;
    int64_t b = f->row_request[row], i = row - p->cu_seqlens_q[b], k = p->topk;
    int64_t n = p->seq_lens_kv[b], end = mla_fill_visible(f, b, i), first = 0, m;
    uint64_t key = mla_random_mix(f->key[STREAM_LIST] + (uint64_t)row * MLA_RANDOM_STEP);
    uint64_t counter = 0;
    if (f->kind == FILL_MASKED && row % 4 == 0)
        end = 0;
    else if (f->kind == FILL_MASKED && row % 4 == 2 && end > TILE)
        first = TILE;

    if (f->kind == FILL_SINK && end > k) {
        m = list_sink(f, s, b, i, end, out);
        shuffle(key, &counter, out, m);
    } else if (f->kind == FILL_CANCEL && end > k && k > 1) {
        m = list_pairs(f, s, key, &counter, end, out);
    } else {
        m = end - first < k ? end - first : k;
        draw(s, key, &counter, first, end - first, m, out);
    }
    if (f->kind == FILL_NEEDLE && m > 0) {
        int32_t needle = (int32_t)mla_fill_needle(f, b, i);
        bool listed = false;
        for (int64_t c = 0; c < m; c++)
            listed |= out[c] == needle;
        if (!listed)
            out[mla_random_below(mla_random_word(key, counter++), m)] = needle;
    }

    int64_t len = m;
    if (len_out && n > k) { /* some rows count fewer; short requests stay complete */
        uint64_t w = mla_random_word(f->key[STREAM_LENS], (uint64_t)row);
        if ((w & 3) == 0 && f->kind != FILL_NEEDLE && f->kind != FILL_CANCEL)
            len = m / 2 + mla_random_below(w, m - m / 2 + 1);
    }
    bool future = false;
    if (f->holes) {
        int32_t needle = f->kind == FILL_NEEDLE ? (int32_t)mla_fill_needle(f, b, i) : -1;
        for (int64_t c = 0; c < len; c++) {
            uint64_t w = mla_random_word(f->key[STREAM_HOLE], (uint64_t)(row * k + c));
            if ((w & 7) == 0 && out[c] != needle)
                out[c] = hole(w, n, mla_fill_visible(f, b, i), &future);
        }
    }
    for (int64_t c = len; c < k; c++) {
        uint64_t w = mla_random_word(f->key[STREAM_TAIL], (uint64_t)(row * k + c));
        out[c] = len_out                              ? stale(w, n)
                 : f->holes || f->kind == FILL_MASKED ? hole(w, n, n, &future)
                                                      : -1;
    }
    if (len_out)
        *len_out = (int32_t)len;
}

/* Bits of keys that don't exist or lie in the causal future are as random as the others: nobody may
 * look at them. */
static void mask_row(const struct fill *f, int64_t row, int64_t words, int32_t *out)
{
    const mla_problem *p = f->problem;
    int64_t b = f->row_request[row], i = row - p->cu_seqlens_q[b];
    uint32_t *bits = (uint32_t *)out;
    for (int64_t w = 0; w < words; w++)
        bits[w] =
            (uint32_t)(mla_random_word(f->key[STREAM_MASK], (uint64_t)(row * words + w)) >> 32);
    int64_t end = mla_fill_visible(f, b, i), hidden = 0;
    if (f->kind == FILL_CANCEL) /* pairs stay together */
        for (int64_t w = 0; w < words; w++)
            bits[w] = (bits[w] & 0x55555555u) * 3u;
    if (f->kind == FILL_MASKED && row % 4 == 0)
        hidden = end;
    else if (f->kind == FILL_MASKED && row % 4 == 2)
        hidden = end < TILE ? end : TILE;
    for (int64_t j = 0; j < hidden; j++)
        bits[j / 32] &= ~(1u << (j % 32));
    if (f->kind == FILL_NEEDLE && end > 0) {
        uint32_t needle = (uint32_t)mla_fill_needle(f, b, i);
        bits[needle / 32] |= 1u << (needle % 32);
    }
}

mla_status mla_fill_lists(const struct fill *f, struct mla_case *c)
{
    const mla_problem *p = f->problem;
    int64_t rows = p->batch ? p->cu_seqlens_q[p->batch] : 0, longest = 0;
    for (int64_t b = 0; b < p->batch; b++)
        longest = p->seq_lens_kv[b] > longest ? p->seq_lens_kv[b] : longest;
    if (p->has_mask) {
        int64_t words = (longest + 31) / 32;
        int32_t *mask = mla_case_buffer(c, (size_t)(rows * words) + 1, sizeof *mask);
        if (!mask)
            return mla_fail(MLA_ERR_MEMORY, "mla_case_make: mask: no memory");
        c->tensors.mask.data = mask;
#pragma omp parallel for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            mask_row(f, row, words, mask + row * words);
    }
    if (!p->topk)
        return MLA_OK;

    int32_t *lists = mla_case_buffer(c, (size_t)rows, (size_t)p->topk * sizeof *lists);
    int32_t *lens = p->has_topk_lens ? mla_case_buffer(c, (size_t)rows + 1, sizeof *lens) : NULL;
    c->tensors.topk_indices.data = lists;
    c->tensors.topk_lens = lens;
    /* Scratch of all threads at once, so that a failure is seen before any of them starts. */
    int threads = omp_get_max_threads();
    int64_t stride = longest + p->topk;
    int32_t *scratch = mla_alloc((size_t)threads, (size_t)stride * sizeof *scratch);
    if (!lists || (p->has_topk_lens && !lens) || !scratch) {
        mla_free(scratch);
        return mla_fail(MLA_ERR_MEMORY,
                        "mla_case_make: topk_indices: no memory for %lld lists of %lld entries",
                        (long long)rows, (long long)p->topk);
    }
#pragma omp parallel num_threads(threads)
    {
        int32_t *mine = scratch + omp_get_thread_num() * stride;
        struct lister s = {.identity = mine, .hot = mine + longest, .hot_block = -1};
        for (int64_t j = 0; j < longest; j++)
            s.identity[j] = (int32_t)j;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            list_row(f, &s, row, lists + row * p->topk, lens ? &lens[row] : NULL);
    }
    mla_free(scratch);
    return MLA_OK;
}
