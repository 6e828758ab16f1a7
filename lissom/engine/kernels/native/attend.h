/* Attention over pages, written once for all instruction sets (tile.h says what these define). */

/* Queries of several tokens, and of all heads that share keys, run together over KEYS tokens at a time; the softmax is
   corrected as larger scores come (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135).
   Blocks of keys begin at multiples of KEYS, so that what a query gives does not depend on what runs beside it.

   Queries and weights are cells: a float, or two numbers of type BFLOAT16, that meet as many features, or tokens. */

enum { PAGES = KEYS / PAGE, LINE = 64 }; /* bytes that are fetched at once: those of the next block while this one is computed */

typedef const uint8_t *const *Pages;

INLINE Floats vector_at(const uint8_t *from, int type) {
    return type == INT8 ? bytes((const int8_t *)from) : load_floats((const float *)from);
}

INLINE Floats add_cell(Floats sum, Floats v, int type, const float *cell) {
    uint32_t pair;
    if (type != BFLOAT16) return add_product(sum, v, floats(*cell));
    __builtin_memcpy(&pair, cell, 4);
    return add_pairs(sum, v, pair);
}

/* Floats become cells, in place. */
INLINE void to_cells(float *x, ptrdiff_t count) {
    EACH_16(j, count) store_brains((uint16_t *)x + j, some_floats(x + j, count - j));
}

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
            for (ptrdiff_t i = 0; i < 16 && f + i < a->size; i++) ((uint16_t *)page)[AT(f + i)] = rounded[i];
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
            for (ptrdiff_t i = 0; i < count; i++) ((int8_t *)page)[AT(f + i)] = codes[i];
        }
        ((float *)(page + (value ? value_codes(a) : key_codes(a))))[slot] = some || most <= 1e-30f ? most / 127 : NAN;
    }
#undef AT
}

/* Scores of `tall` queries against the tokens of ABREAST pages. */
INLINE void score_tile(int tall, int type, const float *query, ptrdiff_t size, ptrdiff_t cells, Pages pages, Pages next,
                       float *scores) {
    const ptrdiff_t step = PAGE * cell_bytes(type);
    Floats sums[TALL][ABREAST];
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int p = 0; p < ABREAST; p++) sums[q][p] = floats(0);
    for (ptrdiff_t c = 0, at = 0; c < cells; c++, at += step) {
        Floats keys[ABREAST];
        if (next && at % LINE == 0)
            for (int p = 0; p < ABREAST; p++) __builtin_prefetch(next[p] + at, 0, 2);
        UNROLL for (int p = 0; p < ABREAST; p++) keys[p] = vector_at(pages[p] + at, type);
        UNROLL for (int q = 0; q < tall; q++)
            UNROLL for (int p = 0; p < ABREAST; p++) sums[q][p] = add_cell(sums[q][p], keys[p], type, query + q * size + c);
    }
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int p = 0; p < ABREAST; p++) store_floats(scores + q * KEYS + p * PAGE, sums[q][p], 16);
}

/* Sums of the values of `tokens`, `wide` vectors of their features, as `tall` queries weigh them. */
INLINE void value_tile(int tall, int wide, int type, const float *weight, ptrdiff_t tokens, Pages pages, Pages next,
                       ptrdiff_t stride, ptrdiff_t feature, float *to) {
    const ptrdiff_t two = together(type), rows = PAGE / two, vector = 16 * cell_bytes(type);
    Floats sums[TALL][ABREAST];
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) sums[q][v] = load_floats(to + q * stride + feature + v * 16);
    for (ptrdiff_t c = 0; c * two < tokens; c++) {
        const ptrdiff_t at = (c % rows * stride + feature) * cell_bytes(type);
        const int half = two == 2 && c * two + 1 == tokens; /* nobody's value stands beside the last */
        Floats values[ABREAST];
        if (next)
            for (ptrdiff_t line = 0; line < wide * vector; line += LINE)
                __builtin_prefetch(next[c / rows] + at + line, 0, 2);
        UNROLL for (int v = 0; v < wide; v++) {
            values[v] = vector_at(pages[c / rows] + at + v * vector, type);
            if (half) values[v] = first_of_pairs(values[v]);
        }
        UNROLL for (int q = 0; q < tall; q++)
            UNROLL for (int v = 0; v < wide; v++) sums[q][v] = add_cell(sums[q][v], values[v], type, weight + q * KEYS + c);
    }
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) store_floats(to + q * stride + feature + v * 16, sums[q][v], 16);
}

INLINE void score_all(int type, const Attention *a, const float *query, ptrdiff_t count, Pages pages, Pages next, float *scores) {
    for (ptrdiff_t q = 0; q < count;) {
        const ptrdiff_t tall = count - q < TALL ? count - q : TALL;
        for (int p = 0; p < PAGES; p += ABREAST) {
            Pages ahead = q == 0 && next ? next + p : NULL;
            float *to = scores + q * KEYS + p * PAGE;
#define TILE(rows) if (tall == rows) score_tile(rows, type, query + q * a->size, a->size, cells_of(a), pages + p, ahead, to);
            UP_TO(TALL)(TILE)
#undef TILE
        }
        q += tall;
    }
}

INLINE void value_all(int type, const Attention *a, const float *weight, ptrdiff_t count, ptrdiff_t tokens, Pages pages,
                      Pages next, float *to) {
    const ptrdiff_t stride = wide_of(a);
    for (ptrdiff_t q = 0; q < count;) {
        const ptrdiff_t tall = count - q < TALL ? count - q : TALL;
        const float *of = weight + q * KEYS;
        Pages ahead = q == 0 ? next : NULL;
        for (ptrdiff_t f = 0; f < stride;) {
            const int all = stride - f >= ABREAST * 16;
#define TILE(rows)                                                                                                  \
    if (tall == rows && all) value_tile(rows, ABREAST, type, of, tokens, pages, ahead, stride, f, to + q * stride); \
    if (tall == rows && !all) value_tile(rows, 1, type, of, tokens, pages, ahead, stride, f, to + q * stride);
            UP_TO(TALL)(TILE)
#undef TILE
            f += all ? ABREAST * 16 : 16;
        }
        q += tall;
    }
}

#define ATTEND(type)                                                                                                     \
    TARGET static void scores_##type(const Attention *a, const float *query, ptrdiff_t count, Pages pages, Pages next,  \
                                     float *scores) {                                                                    \
        score_all(type, a, query, count, pages, next, scores);                                                           \
    }                                                                                                                    \
    TARGET static void values_##type(const Attention *a, const float *weight, ptrdiff_t count, ptrdiff_t tokens,        \
                                     Pages pages, Pages next, float *to) {                                               \
        value_all(type, a, weight, count, tokens, pages, next, to);                                                      \
    }
ATTEND(FLOAT32) ATTEND(BFLOAT16) ATTEND(INT8)

typedef void (*Scores)(const Attention *, const float *, ptrdiff_t, Pages, Pages, float *);
typedef void (*Values)(const Attention *, const float *, ptrdiff_t, ptrdiff_t, Pages, Pages, float *);

/* Scores of a query become weights, those outside `first` up to `last` 0; what was summed before is corrected. */
INLINE void soften(float *scores, ptrdiff_t first, ptrdiff_t last, float *most, float *sum, float *to, ptrdiff_t wide) {
    if (first >= last) {
        memset(scores, 0, sizeof(float) * KEYS);
        return;
    }
    for (ptrdiff_t t = 0; t < first; t++) scores[t] = -INFINITY;
    for (ptrdiff_t t = last; t < KEYS; t++) scores[t] = -INFINITY;
    Floats top = floats(*most), all = floats(0);
    EACH_16(t, KEYS) top = larger(top, load_floats(scores + t));
    const float now = greatest(top);
    EACH_16(t, KEYS) {
        Floats weight = exponential(plus(load_floats(scores + t), floats(-now)));
        all = plus(all, weight);
        store_floats(scores + t, weight, 16);
    }
    if (now != *most) {
        const float before = expf(*most - now);
        *sum *= before;
        EACH_16(f, wide) store_floats(to + f, times(load_floats(to + f), floats(before)), 16);
    }
    *sum += total(all);
    *most = now;
}

/* Each query's numbers times the scales of the block's tokens, which follow `codes` bytes. */
INLINE void rescale(float *of_tokens, ptrdiff_t count, Pages pages, ptrdiff_t codes) {
    for (int p = 0; p < PAGES; p++) {
        Floats scale = load_floats((const float *)(pages[p] + codes));
        for (float *x = of_tokens + p * PAGE; x < of_tokens + count * KEYS; x += KEYS)
            store_floats(x, times(load_floats(x), scale), 16);
    }
}

typedef struct {
    const uint8_t *keys[PAGES], *values[PAGES];
} Block;

/* The pages of KEYS tokens; past the end the last page again, whose scores are then taken for no token's. */
INLINE Block block_at(const Attention *a, const int32_t *pages, ptrdiff_t group, ptrdiff_t base, ptrdiff_t end) {
    Block block;
    for (int p = 0; p < PAGES; p++) {
        const ptrdiff_t at = base / PAGE + p, there = at <= (end - 1) / PAGE ? at : (end - 1) / PAGE;
        block.keys[p] = keys_at(a, pages[there], group);
        block.values[p] = values_at_page(a, pages[there], group);
    }
    return block;
}

TARGET static void attend(const Attention *a, const Queries *of, float *scratch) {
    const ptrdiff_t share = a->heads / a->groups, count = of->count * share, wide = wide_of(a), size = a->size;
    float *query = scratch, *scores = query + count * size, *to = scores + count * KEYS, *most = to + count * wide,
          *sums = most + count;
    const Scores scores_of = (Scores[]){scores_FLOAT32, scores_BFLOAT16, NULL, scores_INT8}[a->type];
    const Values values_of = (Values[]){values_FLOAT32, values_BFLOAT16, NULL, values_INT8}[a->type];
    for (ptrdiff_t q = 0; q < count; q++) {
        const float *from = a->query.at + (of->row + q / share) * a->query.stride + (of->group * share + q % share) * size;
        float *own = query + q * size;
        EACH_16(f, size) store_floats(own + f, times(some_floats(from + f, size - f), floats(a->scale)), size - f);
        if (a->type == BFLOAT16) to_cells(own, size);
        most[q] = -INFINITY;
        sums[q] = 0;
    }
    memset(to, 0, sizeof(float) * (size_t)(count * wide));
    const ptrdiff_t end = a->both ? of->end : of->place + of->count, seen = of->place + 1 - a->window;
    const ptrdiff_t start = a->window && seen > 0 ? seen / KEYS * KEYS : 0;
    const ptrdiff_t neighbour = of->group + 1 < a->groups ? of->group + 1 : of->group; /* comes next */
    for (ptrdiff_t base = start; base < end; base += KEYS) {
        const int more = base + KEYS < end;
        const Block block = block_at(a, of->pages, of->group, base, end);
        const Block next = more ? block_at(a, of->pages, of->group, base + KEYS, end)
                                : block_at(a, of->pages, neighbour, start, end);
        scores_of(a, query, count, block.keys, next.keys, scores);
        if (a->type == INT8) rescale(scores, count, block.keys, key_codes(a));
        if (a->cap != 0) bound(scores, count * KEYS, a->cap);
        for (ptrdiff_t q = 0; q < count; q++) {
            const ptrdiff_t last = (a->both ? of->end : of->place + q / share + 1) - base, first = a->window ? last - a->window : 0;
            soften(scores + q * KEYS, first < 0 ? 0 : first, last > KEYS ? KEYS : last, most + q, sums + q, to + q * wide, wide);
            if (a->type == BFLOAT16) to_cells(scores + q * KEYS, KEYS);
        }
        if (a->type == INT8) rescale(scores, count, block.values, value_codes(a));
        values_of(a, scores, count, more ? KEYS : end - base, block.values, next.values, to);
    }
    for (ptrdiff_t q = 0; q < count; q++) {
        float *out = a->to.at + (of->row + q / share) * a->to.stride + (of->group * share + q % share) * size;
        EACH_16(f, size) store_floats(out + f, times(some_floats(to + q * wide + f, size - f), floats(1 / sums[q])), size - f);
    }
}
