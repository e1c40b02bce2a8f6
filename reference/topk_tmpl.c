/* SPDX-License-Identifier: Apache-2.0 */
/* Body of streaming top-k for one kind of score; topk.c includes it with REAL, BITS, ORDERED (the
 * unsigned integer of REAL's size), SUFFIX set. */

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define ITEM JOIN(mla_item_, SUFFIX)
#define SELECT JOIN(mla_select_, SUFFIX)
#define F(name) JOIN(JOIN(name, _), SUFFIX)

static inline ITEM F(item)(REAL x, int64_t index)
{
    ORDERED bits, sign = (ORDERED)1 << (BITS - 1);
    x += 0; /* -0 becomes +0 */
    memcpy(&bits, &x, sizeof bits);
    bits = x != x ? 0 : bits & sign ? ~bits : bits | sign;
    return (ITEM)bits << 32 | (uint32_t) ~(uint32_t)index;
}

static inline int64_t F(item_index)(ITEM item)
{
    return (uint32_t) ~(uint32_t)item;
}

static REAL F(item_score)(ITEM item)
{
    ORDERED bits = (ORDERED)(item >> 32), sign = (ORDERED)1 << (BITS - 1);
    REAL x;
    if (!bits)
        return (REAL)NAN;
    bits = bits & sign ? bits & ~sign : ~bits;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Moves the k largest of items to the front, one byte of the item at a time from the top: the
 * bucket that holds the k-th stays in play, larger ones are kept, smaller ones dropped. */
static void F(keep_largest)(ITEM *items, int64_t n, int64_t k)
{
    int64_t kept = 0;
    for (int shift = BITS + 32 - 8; shift >= 0 && kept + n > k && n > 1; shift -= 8) {
        ITEM *a = items + kept;
        int64_t count[256] = {0}, above = 0, larger = 0, equal = 0;
        for (int64_t i = 0; i < n; i++)
            count[(unsigned)(a[i] >> shift) & 255]++;
        int digit = 255;
        for (; above + count[digit] < k - kept; digit--)
            above += count[digit];
        if (count[digit] == n)
            continue;
        /* a = [larger | equal | dropped], unread items at i */
        for (int64_t i = 0; i < n; i++) {
            ITEM x = a[i];
            int d = (int)((unsigned)(x >> shift) & 255);
            if (d < digit)
                continue;
            a[i] = a[larger + equal];
            a[larger + equal] = x;
            if (d == digit) {
                equal++;
            } else {
                a[larger + equal] = a[larger];
                a[larger] = x;
                larger++;
            }
        }
        kept += larger;
        n = equal;
    }
}

static void F(shrink)(struct SELECT *s)
{
    F(keep_largest)(s->items, s->count, s->k);
    s->count = s->k;
    ITEM least = s->items[0];
    for (int64_t i = 1; i < s->k; i++)
        least = s->items[i] < least ? s->items[i] : least;
    s->floor = least;
    s->floor_score = F(item_score)(least);
    s->full = true;
}

void F(mla_select_begin)(struct SELECT *s, int64_t k, void *items)
{
    *s = (struct SELECT){.items = items, .k = k, .capacity = mla_select_capacity(k)};
}

void F(mla_select_push)(struct SELECT *s, const REAL *scores, int64_t first, int64_t n)
{
    for (int64_t i = 0; i < n;) {
        if (s->count + CHUNK > s->capacity)
            F(shrink)(s);
        const REAL *x = scores + i, floor = s->floor_score;
        int64_t m = n - i < CHUNK ? n - i : CHUNK;
        if (s->full) {
            /* Most chunks hold nothing above the floor. NaN on either side counts as above here;
             * the integers decide. An equal score with a higher index is out, and they come in
             * order. */
            int above = 0;
#pragma omp simd reduction(| : above)
            for (int64_t j = 0; j < m; j++)
                above |= !(x[j] <= floor);
            for (int64_t j = 0; above && j < m; j++) {
                ITEM item = F(item)(x[j], first + i + j);
                s->items[s->count] = item;
                s->count += item > s->floor;
            }
        } else {
            for (int64_t j = 0; j < m; j++)
                s->items[s->count++] = F(item)(x[j], first + i + j);
        }
        i += m;
    }
}

void F(mla_select_merge)(struct SELECT *s, const struct SELECT *other)
{
    for (int64_t i = 0; i < other->count; i++) {
        if (s->full && other->items[i] < s->floor)
            continue;
        if (s->count == s->capacity)
            F(shrink)(s);
        s->items[s->count++] = other->items[i];
    }
}

/* Stable byte-wise sort, descending, on the low `bytes` bytes; returns where the result lies. */
static ITEM *F(sort)(ITEM *items, ITEM *scratch, int64_t n, int bytes)
{
    for (int shift = 0; shift < 8 * bytes; shift += 8) {
        int64_t count[256] = {0}, place = 0;
        for (int64_t i = 0; i < n; i++)
            count[(unsigned)(items[i] >> shift) & 255]++;
        if (n == 0 || count[(unsigned)(items[0] >> shift) & 255] == n)
            continue;
        for (int digit = 255; digit >= 0; digit--) {
            int64_t c = count[digit];
            count[digit] = place;
            place += c;
        }
        for (int64_t i = 0; i < n; i++)
            scratch[count[(unsigned)(items[i] >> shift) & 255]++] = items[i];
        ITEM *swap = items;
        items = scratch;
        scratch = swap;
    }
    return items;
}

void F(mla_select_end)(struct SELECT *s, mla_topk_order order, const struct mla_select_out *out)
{
    if (s->count > s->k)
        F(shrink)(s);
    /* Complemented indices descend where indices ascend. */
    int bytes = order == MLA_TOPK_ASCENDING ? 4 : (int)sizeof(REAL) + 4;
    const ITEM *sorted = F(sort)(s->items, s->items + s->capacity / 2, s->count, bytes);
    REAL *scores = out->scores;
    for (int64_t i = 0; i < out->k; i++) {
        bool held = i < s->count;
        out->indices[i] = held ? (int32_t)(F(item_index)(sorted[i]) - out->base) : -1;
        if (scores)
            scores[i] = held ? F(item_score)(sorted[i]) : -(REAL)INFINITY;
    }
    if (out->len)
        *out->len = (int32_t)s->count;
}

#undef JOIN2
#undef JOIN
#undef ITEM
#undef SELECT
#undef F
#undef REAL
#undef BITS
#undef ORDERED
#undef SUFFIX
