/* Attention over pages, written once for all instruction sets (tile.h says what these define). */

/* Queries of several tokens, and of all heads that share keys, run together over KEYS tokens at a time; the softmax is
   corrected as larger scores come (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135).
   Blocks of keys begin at multiples of KEYS, so that what a query gives does not depend on what runs beside it.

   After SPAN tokens all begins anew, and what these gave is added to what was seen before, so that threads can share a long
   context without changing what comes of it. */

#include "scores.h"

enum {
    AHEAD_BLOCKS = 2, /* keys, or values, of so many groups lie between those that are read and those that are fetched */
    SLACK = 8, /* weights may be up to 2^SLACK before those summed so far are corrected, which is then seldom */
};

TARGET static void keep(const Attention *a, float *head, int value, uint8_t *page, ptrdiff_t slot) {
    const ptrdiff_t most_cells = value ? wide_of(a) : PAGE, two = together(a->type);
    const ptrdiff_t first = value ? slot / two * most_cells * two + slot % two : slot * two;
#define AT(f) (first + (value ? (f) * two : (f) / two * PAGE * two + (f) % two))
    if (a->type == FLOAT32)
        for (ptrdiff_t f = 0; f < a->size; f++) ((float *)page)[AT(f)] = head[f];
    if (a->type == BFLOAT16)
        for (ptrdiff_t f = 0; f < a->size; f += 16) {
            uint16_t rounded[16];
            store_brains(rounded, some_floats(head + f, a->size - f));
            if (value)
                for (ptrdiff_t i = 0; i < 16; i++) ((uint16_t *)page)[AT(f + i)] = rounded[i];
            else
                for (ptrdiff_t i = 0; i < 16 && f + i < a->size; i += 2)
                    memcpy((uint16_t *)page + AT(f + i), rounded + i, CELL);
        }
    if (a->type == INT8) {
        const uint32_t bits = largest(head, a->size);
        float most;
        memcpy(&most, &bits, 4);
        const int some = most > 1e-30f && most < INFINITY;
        for (ptrdiff_t f = 0; f < a->size; f += 16) {
            const ptrdiff_t count = a->size - f < 16 ? a->size - f : 16;
            int8_t codes[16];
            round_block(head + f, some ? count : 0, 16, some ? 127 / most : 0, codes);
            for (ptrdiff_t i = 0; i < 16; i++) codes[i] ^= -128; /* 128 more */
            if (value)
                for (ptrdiff_t i = 0; i < count; i++) page[first + (f + i) * 4] = (uint8_t)codes[i];
            else
                for (ptrdiff_t i = 0; i < count; i += 4) memcpy(page + slot * CELL + (f + i) * PAGE, codes + i, CELL);
        }
        ((float *)(page + (value ? value_codes(a) : key_codes(a))))[slot] = some || most <= 1e-30f ? most / 127 : NAN;
    }
#undef AT
}

/* What some tokens give a query, in seen_of() floats: sums of their values, `wide`; the sum of their weights, lane by lane; and
   the score, times log2(e), whose weight is 1. */
enum { LANE_SUMS = 16 };

static void see_nothing(const Attention *a, float *seen) {
    memset(seen, 0, sizeof(float) * (size_t)seen_of(a));
    seen[wide_of(a) + LANE_SUMS] = -INFINITY;
}

/* What other tokens give as well. */
INLINE void add_seen(const Attention *a, float *seen, const float *more) {
    const ptrdiff_t wide = wide_of(a), sums = wide + LANE_SUMS;
    const float most = more[sums] > seen[sums] ? more[sums] : seen[sums];
    if (more[sums] == -INFINITY) return;
    const Floats before = power_of_two(floats(seen[sums] - most)), now = power_of_two(floats(more[sums] - most));
    EACH_16(f, sums) {
        Floats kept = times(load_floats(seen + f), before);
        store_floats(seen + f, add_product(kept, load_floats(more + f), now), 16);
    }
    seen[sums] = most;
}

/* Scores of a query for `count` tokens, whole pages, become weights, or pairs of them, those outside `first` up to `last` 0.
   What was summed before is corrected. */
INLINE void soften(int pairs, const Attention *a, float *scores, ptrdiff_t count, ptrdiff_t first, ptrdiff_t last, float *seen) {
    const ptrdiff_t wide = wide_of(a);
    float *all = seen + wide, *most = all + LANE_SUMS;
    if (first >= last) {
        memset(scores, 0, sizeof(float) * (size_t)count);
        return;
    }
    for (ptrdiff_t t = 0; t < first; t += 16) store_floats(scores + t, floats(-INFINITY), first - t);
    for (ptrdiff_t t = last; t < count; t += 16 - t % 16) store_floats(scores + t, floats(-INFINITY), 16 - t % 16);
    Floats top = load_floats(scores), sum = load_floats(all);
    for (ptrdiff_t t = 16; t < count; t += 16) top = larger(top, load_floats(scores + t));
    const float now = greatest(top) * LOG2_E;
    if (!(now <= *most + SLACK)) {
        const Floats before = power_of_two(floats(*most - now));
        sum = times(sum, before);
        EACH_16(f, wide) store_floats(seen + f, times(load_floats(seen + f), before), 16);
        *most = now;
    }
    const Floats shift = floats(-*most);
    EACH_16(t, count) {
        Floats weight = power_of_two(add_product(shift, load_floats(scores + t), floats(LOG2_E)));
        sum = plus(sum, weight);
        if (pairs) store_brains((uint16_t *)scores + t, weight);
        else store_floats(scores + t, weight, 16);
    }
    store_floats(all, sum, 16);
}

/* Weights times the scales of their values, which follow `codes` bytes, become integers; those that are 0 stay so, since the
   scale may be nobody's. */
INLINE Rounded weights_to_integers(const float *weight, ptrdiff_t count, Pages pages, ptrdiff_t codes, int8_t *to) {
    float scaled[KEYS];
    EACH_16(t, count) {
        const Floats own = load_floats(weight + t), scale = load_floats((const float *)(pages[t / PAGE] + codes));
        store_floats(scaled + t, unless_below(own, 1e-30f, times(own, scale)), 16);
    }
    return to_integers(scaled, count, to);
}

/* The keys, or the values, of KEYS tokens. */
typedef struct {
    const uint8_t *at[PAGES];
} Block;

/* Those of tokens past the end are the last page's again, and their scores are then taken for no token's. */
INLINE Block block_at(const Attention *a, const Queries *of, ptrdiff_t group, int value, ptrdiff_t base, ptrdiff_t end) {
    Block block;
    for (int p = 0; p < PAGES; p++) {
        const ptrdiff_t at = base / PAGE + p, page = of->pages[at <= (end - 1) / PAGE ? at : (end - 1) / PAGE];
        block.at[p] = value ? values_at_page(a, page, group) : keys_at(a, page, group);
    }
    return block;
}

/* In the order in which they are read: keys of the groups, their values, then those of the next tokens. */
INLINE Block nth(const Attention *a, const Queries *of, ptrdiff_t base, ptrdiff_t end, ptrdiff_t n) {
    const ptrdiff_t groups = of->groups;
    if (n >= 2 * groups && base + KEYS < end) base += KEYS, n -= 2 * groups;
    n = n < 2 * groups ? n : 2 * groups - 1;
    return block_at(a, of, of->group + n % groups, n >= groups, base, end);
}

/* A query as it meets keys. */
INLINE Rounded prepare(const Attention *a, const float *from, float *to) {
    if (a->type == INT8) {
        const Rounded made = to_integers(from, a->size, (int8_t *)to);
        return (Rounded){made.factor * a->scale, made.sum};
    }
    EACH_16(f, a->size) {
        Floats scaled = times(some_floats(from + f, a->size - f), floats(a->scale));
        if (a->type == BFLOAT16) store_brains((uint16_t *)to + f, scaled);
        else store_floats(to + f, scaled, 16);
    }
    return (Rounded){0};
}

/* Where a query of a group begins in a matrix; they are counted token by token. */
INLINE float *query_at(const Attention *a, const Queries *of, Columns in, ptrdiff_t group, ptrdiff_t q) {
    const ptrdiff_t share = a->heads / a->groups;
    return in.at + (of->row + q / share) * in.stride + (group * share + q % share) * a->size;
}

TARGET static void conclude(const Attention *a, const Queries *of, const float *seen) {
    const ptrdiff_t wide = wide_of(a), size = a->size, count = of->count * (a->heads / a->groups);
    for (ptrdiff_t i = 0; i < count * of->groups; i++, seen += seen_of(a)) {
        float *out = query_at(a, of, a->to, of->group + i / count, i % count);
        const Floats whole = floats(1 / total(load_floats(seen + wide)));
        EACH_16(f, size) store_floats(out + f, times(load_floats(seen + f), whole), size - f);
    }
}

TARGET static void attend(const Attention *a, const Queries *of, float *scratch) {
    const ptrdiff_t share = a->heads / a->groups, count = of->count * share, rows = count * of->groups, wide = wide_of(a);
    const ptrdiff_t size = seen_of(a);
    const ptrdiff_t query_bytes = wide * (a->type == INT8 ? 1 : CELL);
    uint8_t *query = (uint8_t *)scratch;
    float *scores = scratch + rows * wide, *now = scores + rows * KEYS, *seen = now + rows * size;
    Rounded *queries = (Rounded *)(seen + rows * size), *weights = queries + rows;
    const Scores scores_of = (Scores[]){scores_FLOAT32, scores_BFLOAT16, NULL, scores_INT8}[a->type];
    const Values values_of = (Values[]){values_FLOAT32, values_BFLOAT16, NULL, values_INT8}[a->type];
    if (of->seen) seen = of->seen + of->group * count * size;
    const ptrdiff_t stop = of->place + of->count, unseen = of->place + 1 - a->window;
    const ptrdiff_t first = a->window && unseen > 0 ? unseen / KEYS * KEYS : 0;
    const ptrdiff_t start = of->seen && of->span * SPAN > first ? of->span * SPAN : first;
    const ptrdiff_t end = of->seen && (of->span + 1) * SPAN < stop ? (of->span + 1) * SPAN : stop;
    if (end <= (start / SPAN + 1) * SPAN) now = seen; /* nothing was seen before */
    for (ptrdiff_t i = 0; i < rows; i++) {
        const float *from = query_at(a, of, a->query, of->group + i / count, i % count);
        const float *out = query_at(a, of, a->to, of->group + i / count, i % count);
        EACH_16(f, a->size) { /* what the next group reads, and where this one writes */
            __builtin_prefetch(from + share * a->size + f, 0, 2);
            __builtin_prefetch(out + f, 1, 2);
        }
        queries[i] = prepare(a, from, (float *)(query + i * query_bytes));
        see_nothing(a, now + i * size);
        see_nothing(a, seen + i * size);
    }
    for (ptrdiff_t base = start; base < end; base += KEYS) {
        const int more = base + KEYS < end;
        const ptrdiff_t tokens = more ? KEYS : end - base, whole = (tokens + PAGE - 1) / PAGE * PAGE;
        for (ptrdiff_t g = 0; g < of->groups; g++) {
            const Block keys = nth(a, of, base, end, g), next = nth(a, of, base, end, g + AHEAD_BLOCKS);
            scores_of(a, (const float *)(query + g * count * query_bytes), queries + g * count, count, tokens, keys.at,
                      next.at, scores + g * count * KEYS);
        }
        if (a->cap != 0) bound(scores, rows * KEYS, a->cap);
        for (ptrdiff_t g = 0; g < of->groups; g++) {
            const ptrdiff_t n = of->groups + g;
            const Block values = nth(a, of, base, end, n), next = nth(a, of, base, end, n + AHEAD_BLOCKS);
            float *own = scores + g * count * KEYS;
            for (ptrdiff_t q = 0; q < count; q++) {
                const ptrdiff_t last = of->place + q / share + 1 - base;
                const ptrdiff_t from = a->window ? last - a->window : 0;
                soften(a->type == BFLOAT16, a, own + q * KEYS, whole, from < 0 ? 0 : from, last > KEYS ? KEYS : last,
                       now + (g * count + q) * size);
                if (a->type == INT8)
                    weights[g * count + q] = weights_to_integers(own + q * KEYS, whole, values.at, value_codes(a),
                                                                 (int8_t *)own + q * KEYS);
            }
            values_of(a, own, weights + g * count, count, tokens, values.at, next.at, now + g * count * size);
        }
        if (now == seen || (more && (base + KEYS) % SPAN)) continue;
        for (ptrdiff_t i = 0; i < rows; i++) {
            add_seen(a, seen + i * size, now + i * size);
            see_nothing(a, now + i * size);
        }
    }
    if (!of->seen) conclude(a, of, seen);
}

/* Spans are taken in their order, as one piece takes them too. */
TARGET static void unite(const Attention *a, const Queries *spans, ptrdiff_t group) {
    const ptrdiff_t count = spans->count * (a->heads / a->groups), size = seen_of(a), first = group * count * size;
    Queries all = *spans;
    all.group = group;
    all.groups = 1;
    for (ptrdiff_t s = 1; s < all.spans; s++)
        for (ptrdiff_t i = 0; i < count; i++) add_seen(a, all.seen + first + i * size, spans[s].seen + first + i * size);
    conclude(a, &all, all.seen + first);
}
