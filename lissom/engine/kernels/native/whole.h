/* Attention of sequences to themselves, written once for all instruction sets (tile.h says what these define). */

/* LOOKERS queries at a time stand side by side, one in each lane, and meet the keys and values of a head one after the other,
   so that nothing is summed across lanes. Features of a key, and tokens of a value, are taken in cells: a float, or two numbers
   of type BFLOAT16 where the processor multiplies these in pairs.
       keys    [tokens][cells, whole vectors]      queries [cells][LOOKERS]
       values  [tokens / TOGETHER][features]       scores  [tokens][LOOKERS], and then weights [tokens / TOGETHER][LOOKERS] */

#ifdef PAIRED
enum { TOGETHER = 2 };
#else
enum { TOGETHER = 1 };
INLINE Floats side_by_side(Floats a, Floats b) {
    (void)b;
    return a;
}
INLINE Floats paired(Floats a, Floats b) { return side_by_side(a, b); }
#endif

#ifndef TRANSPOSES
INLINE void transpose(Floats *square) {
    float from[16][16], to[16][16];
    for (int i = 0; i < 16; i++) store_floats(from[i], square[i], 16);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[i][j] = from[j][i];
    for (int i = 0; i < 16; i++) square[i] = load_floats(to[i]);
}
#endif

enum { VECTORS = LOOKERS / 16 };

INLINE Floats add_own(Floats sum, Floats v, const float *cell) {
    return add_cell(sum, v, TOGETHER == 2 ? BFLOAT16 : FLOAT32, cell);
}

/* 16 cells of a row of which so many features are left. */
INLINE Floats cells_at(const float *x, ptrdiff_t left, float factor) {
    const Floats first = times(some_floats(x, left), floats(factor));
    return TOGETHER == 1 ? first : side_by_side(first, times(some_floats(x + 16, left - 16), floats(factor)));
}

/* ACROSS keys, or features of values, meet the queries: `count` cells of each, which are `next` apart for the same, and `apart`
   for two of them. */
INLINE void meet(int vectors, const float *cell, ptrdiff_t next, ptrdiff_t apart, const float *queries, ptrdiff_t count,
                 const Floats *factor, float *to) {
    Floats sums[ACROSS][VECTORS];
    UNROLL for (int k = 0; k < ACROSS; k++)
        UNROLL for (int v = 0; v < vectors; v++) sums[k][v] = floats(0);
    for (ptrdiff_t c = 0; c < count; c++, cell += next, queries += LOOKERS) {
        Floats own[VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) own[v] = load_floats(queries + v * 16);
        UNROLL for (int k = 0; k < ACROSS; k++)
            UNROLL for (int v = 0; v < vectors; v++) sums[k][v] = add_own(sums[k][v], own[v], cell + k * apart);
    }
    UNROLL for (int k = 0; k < ACROSS; k++)
        UNROLL for (int v = 0; v < vectors; v++)
            store_floats(to + k * LOOKERS + v * 16, factor ? times(sums[k][v], factor[v]) : sums[k][v], 16);
}

/* Scores of 16 queries, times log2(e), become weights, of which the largest is 1; returns the inverse of their sum. */
INLINE Floats weigh(float *scores, ptrdiff_t count) {
    Floats top = load_floats(scores), sum = floats(0);
    for (ptrdiff_t t = 1; t < count; t++) top = larger(top, load_floats(scores + t * LOOKERS));
    const Floats less = times(top, floats(-1));
    for (ptrdiff_t t = 0; t < count; t += TOGETHER) {
        const float *from = scores + t * LOOKERS;
        const Floats first = power_of_two(plus(load_floats(from), less));
        const int both = TOGETHER == 2 && t + 1 < count;
        const Floats second = both ? power_of_two(plus(load_floats(from + LOOKERS), less)) : floats(0);
        sum = plus(sum, plus(first, second));
        store_floats(scores + t / TOGETHER * LOOKERS, paired(first, second), 16);
    }
    return over(floats(1), sum);
}

typedef struct {
    ptrdiff_t size, wide, cells, apart; /* features of a head, and these in whole vectors; cells of a key, and of two the distance */
    ptrdiff_t count, tokens;            /* of the sequence, and these in whole vectors */
    float *keys, *values, *queries, *scores, *given;
} Room;

INLINE void put_keys(const Room *r, const float *key, ptrdiff_t stride) {
    for (ptrdiff_t t = 0; t < r->tokens; t++)
        for (ptrdiff_t c = 0; c < r->cells; c += 16) {
            const ptrdiff_t f = c * TOGETHER;
            store_floats(r->keys + t * r->apart + c, t < r->count ? cells_at(key + t * stride + f, r->size - f, 1) : floats(0), 16);
        }
}

INLINE void put_values(const Room *r, const float *value, ptrdiff_t stride) {
    for (ptrdiff_t t = 0; t < r->count; t += TOGETHER)
        EACH_16(f, r->size) {
            const float *from = value + t * stride + f;
            const Floats second = some_floats(from + stride, t + 1 < r->count ? r->size - f : 0);
            store_floats(r->values + t / TOGETHER * r->wide + f, paired(some_floats(from, r->size - f), second), 16);
        }
}

/* `count` queries, at most those of a vector. */
INLINE void put_queries(const Room *r, const float *query, ptrdiff_t stride, ptrdiff_t count, float factor, float *to) {
    for (ptrdiff_t c = 0; c < r->cells; c += 16) {
        const ptrdiff_t f = c * TOGETHER;
        Floats square[16];
        UNROLL for (int q = 0; q < 16; q++)
            square[q] = q < count ? cells_at(query + q * stride + f, r->size - f, factor) : floats(0);
        transpose(square);
        UNROLL for (int i = 0; i < 16; i++) store_floats(to + (c + i) * LOOKERS, square[i], 16);
    }
}

INLINE void take_given(const Room *r, const float *given, ptrdiff_t count, float *to, ptrdiff_t stride) {
    EACH_16(f, r->size) {
        Floats square[16];
        UNROLL for (int i = 0; i < 16; i++) square[i] = load_floats(given + (f + i) * LOOKERS);
        transpose(square);
        UNROLL for (int q = 0; q < 16; q++)
            if (q < count) store_floats(to + q * stride + f, square[q], r->size - f);
    }
}

/* What `count` queries are given by the keys and values that were put down. */
INLINE void look_together(int vectors, const Room *r, Columns query, ptrdiff_t count, float scale, Columns to) {
    Floats shares[VECTORS];
    for (int v = 0; v < vectors; v++)
        put_queries(r, query.at + v * 16 * query.stride, query.stride, count - v * 16, scale * LOG2_E, r->queries + v * 16);
    for (ptrdiff_t t = 0; t < r->count; t += ACROSS)
        meet(vectors, r->keys + t * r->apart, 1, r->apart, r->queries, r->cells, NULL, r->scores + t * LOOKERS);
    for (int v = 0; v < vectors; v++) shares[v] = weigh(r->scores + v * 16, r->count);
    for (ptrdiff_t f = 0; f < r->wide; f += ACROSS)
        meet(vectors, r->values + f, r->wide, 1, r->scores, (r->count + TOGETHER - 1) / TOGETHER, shares, r->given + f * LOOKERS);
    for (int v = 0; v < vectors; v++)
        take_given(r, r->given + v * 16, count - v * 16, to.at + v * 16 * to.stride, to.stride);
}

TARGET static void attend_whole(const Whole *w, const Seen *s, float *scratch) {
    const ptrdiff_t wide = vectors_of(w->size), cells = (w->size + TOGETHER - 1) / TOGETHER, tokens = vectors_of(s->count);
    Room r = {.size = w->size, .wide = wide, .cells = cells, .apart = vectors_of(cells), .count = s->count, .tokens = tokens};
    r.keys = scratch;
    r.values = r.keys + tokens * wide;
    r.queries = r.values + tokens * wide;
    r.given = r.queries + LOOKERS * wide;
    r.scores = r.given + LOOKERS * wide;
    const ptrdiff_t column = s->head * w->size;
    put_keys(&r, w->key.at + s->row * w->key.stride + column, w->key.stride);
    put_values(&r, w->value.at + s->row * w->value.stride + column, w->value.stride);
    for (ptrdiff_t first = s->first; first < s->last; first += LOOKERS) {
        const ptrdiff_t row = s->row + first, count = s->last - first < LOOKERS ? s->last - first : LOOKERS;
        const Columns query = {w->query.at + row * w->query.stride + column, w->query.stride};
        const Columns to = {w->to.at + row * w->to.stride + column, w->to.stride};
        if (count > 16) look_together(VECTORS, &r, query, count, w->scale, to);
        else look_together(1, &r, query, count, w->scale, to);
    }
}
