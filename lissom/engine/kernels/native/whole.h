/* Attention of sequences to themselves, written once for all instruction sets (tile.h says what these define). */

/* Keys and values of a head are put down as cells: keys [cells][tokens], values [tokens / TOGETHER][wide], with tokens up to a
   multiple of 16. Then TALL queries at a time meet all of them. A cell is a float, or two numbers of type BFLOAT16 where the
   processor multiplies these in pairs. */

#ifdef PAIRED
enum { TOGETHER = 2 };
#else
enum { TOGETHER = 1 };
INLINE Floats paired(Floats a, Floats b) {
    (void)b;
    return a;
}
#endif

INLINE Floats add_own(Floats sum, Floats v, const float *cell) {
    return add_cell(sum, v, TOGETHER == 2 ? BFLOAT16 : FLOAT32, cell);
}

enum { ASIDE = 2 }; /* vectors of values that are summed at once */

INLINE void to_cells(const float *x, ptrdiff_t count, Floats factor, float *to) {
    Floats scaled = times(some_floats(x, count), factor);
    if (TOGETHER == 2) store_brains((uint16_t *)to, scaled);
    else store_floats(to, scaled, 16);
}

INLINE void put_key(const float *key, ptrdiff_t size, ptrdiff_t tokens, float *to) {
    EACH_16(f, size) {
        float cells[16];
        to_cells(key + f, size - f, floats(1), cells);
        UNROLL for (ptrdiff_t c = 0; c < 16 / TOGETHER; c++)
            if (f + c * TOGETHER < size) to[(f / TOGETHER + c) * tokens] = cells[c];
    }
}

INLINE void score_rows(int tall, int wide, const float *query, ptrdiff_t stride, ptrdiff_t cells, const float *keys,
                       ptrdiff_t tokens, float *scores) {
    Floats sums[TALL][ABREAST];
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) sums[q][v] = floats(0);
    for (ptrdiff_t c = 0; c < cells; c++, keys += tokens) {
        Floats own[ABREAST];
        UNROLL for (int v = 0; v < wide; v++) own[v] = load_floats(keys + v * 16);
        UNROLL for (int q = 0; q < tall; q++)
            UNROLL for (int v = 0; v < wide; v++) sums[q][v] = add_own(sums[q][v], own[v], query + q * stride + c);
    }
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) store_floats(scores + q * tokens + v * 16, sums[q][v], 16);
}

INLINE void value_rows(int tall, int wide, const float *weights, ptrdiff_t tokens, const float *values, ptrdiff_t stride,
                       const float *all, ptrdiff_t left, Columns to) {
    Floats sums[TALL][ASIDE];
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) sums[q][v] = floats(0);
    for (ptrdiff_t c = 0; c < tokens / TOGETHER; c++, values += stride) {
        Floats own[ASIDE];
        UNROLL for (int v = 0; v < wide; v++) own[v] = load_floats(values + v * 16);
        UNROLL for (int q = 0; q < tall; q++)
            UNROLL for (int v = 0; v < wide; v++) sums[q][v] = add_own(sums[q][v], own[v], weights + q * tokens + c);
    }
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++)
            store_floats(to.at + q * to.stride + v * 16, times(sums[q][v], floats(1 / all[q])), left - v * 16);
}

/* Scores of a query, times log2(e), become weights, of which the largest is 1, in cells; returns their sum. */
INLINE float weigh(float *scores, ptrdiff_t count, ptrdiff_t tokens) {
    for (ptrdiff_t t = count; t < tokens; t++) scores[t] = -INFINITY;
    Floats top = load_floats(scores), sum = floats(0);
    EACH_16(t, tokens) top = larger(top, load_floats(scores + t));
    const Floats shift = floats(-greatest(top));
    EACH_16(t, tokens) {
        Floats weight = power_of_two(plus(load_floats(scores + t), shift));
        sum = plus(sum, weight);
        if (TOGETHER == 2) store_brains((uint16_t *)scores + t, weight);
        else store_floats(scores + t, weight, 16);
    }
    return total(sum);
}

TARGET static void attend_whole(const Whole *w, const Seen *s, float *scratch) {
    const ptrdiff_t size = w->size, wide = vectors_of(size), cells = (size + TOGETHER - 1) / TOGETHER;
    const ptrdiff_t tokens = vectors_of(s->count), column = s->head * size;
    float *keys = scratch, *values = keys + cells * tokens, *queries = values + tokens / TOGETHER * wide;
    float *scores = queries + TALL * wide;
    const float *query = w->query.at + s->row * w->query.stride + column;
    const float *key = w->key.at + s->row * w->key.stride + column;
    const float *value = w->value.at + s->row * w->value.stride + column;
    for (ptrdiff_t t = 0; t < s->count; t++) put_key(key + t * w->key.stride, size, tokens, keys + t);
    for (ptrdiff_t c = 0; c < cells; c++)
        for (ptrdiff_t t = s->count; t < tokens; t++) keys[c * tokens + t] = 0;
    for (ptrdiff_t t = 0; t < tokens; t += TOGETHER)
        EACH_16(f, size) {
            const float *from = value + t * w->value.stride + f, *next = from + w->value.stride;
            Floats first = some_floats(from, t < s->count ? size - f : 0);
            Floats second = some_floats(next, t + 1 < s->count ? size - f : 0);
            store_floats(values + t / TOGETHER * wide + f, paired(first, second), 16);
        }
    for (ptrdiff_t first = s->first, tall; first < s->last; first += tall) {
        tall = s->last - first < TALL ? s->last - first : TALL;
        float all[TALL];
        for (ptrdiff_t q = 0; q < tall; q++)
            EACH_16(f, size) {
                const float *from = query + (first + q) * w->query.stride + f;
                to_cells(from, size - f, floats(w->scale * LOG2_E), queries + q * wide + f / TOGETHER);
            }
        for (ptrdiff_t t = 0; t < tokens;) {
            const int most = tokens - t >= ABREAST * 16;
#define TILE(rows)                                                                                                             \
    if (tall == rows && most) score_rows(rows, ABREAST, queries, wide, cells, keys + t, tokens, scores + t);                   \
    if (tall == rows && !most) score_rows(rows, 1, queries, wide, cells, keys + t, tokens, scores + t);
            UP_TO(TALL)(TILE)
#undef TILE
            t += most ? ABREAST * 16 : 16;
        }
        for (ptrdiff_t q = 0; q < tall; q++) all[q] = weigh(scores + q * tokens, s->count, tokens);
        for (ptrdiff_t f = 0; f < size;) {
            const Columns to = {w->to.at + (s->row + first) * w->to.stride + column + f, w->to.stride};
            const int most = wide - f >= ASIDE * 16;
#define TILE(rows)                                                                                                             \
    if (tall == rows && most) value_rows(rows, ASIDE, scores, tokens, values + f, wide, all, size - f, to);                    \
    if (tall == rows && !most) value_rows(rows, 1, scores, tokens, values + f, wide, all, size - f, to);
            UP_TO(TALL)(TILE)
#undef TILE
            f += most ? ASIDE * 16 : 16;
        }
    }
}
