/* Queries times keys, and weights times values, in pages; written once for all instruction sets (tile.h says what these define). */

/* Queries and weights are cells: a float, or two numbers of type BFLOAT16, or four integers with a scale for each query, that
   meet as many features, or tokens. */

enum { PAGES = KEYS / PAGE };

typedef const uint8_t *const *Pages;

INLINE Floats add_cell(Floats sum, Floats v, int type, const float *cell) {
    uint32_t pair;
    if (type != BFLOAT16) return add_product(sum, v, floats(*cell));
    __builtin_memcpy(&pair, cell, 4);
    return add_pairs(sum, v, pair);
}

/* Scores of `tall` queries against the tokens of `wide` pages. */
INLINE void score_tile(int tall, int wide, int type, const float *query, ptrdiff_t stride, ptrdiff_t cells, Pages pages, Pages next,
                       float *scores) {
    const ptrdiff_t step = PAGE * CELL;
    Floats sums[TALL][ABREAST];
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int p = 0; p < wide; p++) sums[q][p] = floats(0);
    for (ptrdiff_t c = 0, at = 0; c < cells; c++, at += step) {
        Floats keys[ABREAST];
        if (next)
            for (int p = 0; p < wide; p++) __builtin_prefetch(next[p] + at, 0, 2);
        UNROLL for (int p = 0; p < wide; p++) keys[p] = load_floats((const float *)(pages[p] + at));
        UNROLL for (int q = 0; q < tall; q++)
            UNROLL for (int p = 0; p < wide; p++) sums[q][p] = add_cell(sums[q][p], keys[p], type, query + q * stride + c);
    }
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int p = 0; p < wide; p++) store_floats(scores + q * KEYS + p * PAGE, sums[q][p], 16);
}

/* Sums of the values of `tokens`, `wide` vectors of their features, as `tall` queries weigh them. */
INLINE void value_tile(int tall, int wide, int type, const float *weight, ptrdiff_t tokens, Pages pages, Pages next,
                       ptrdiff_t stride, ptrdiff_t feature, float *to, ptrdiff_t apart) {
    const ptrdiff_t two = together(type), rows = PAGE / two, vector = 16 * CELL;
    Floats sums[TALL][ABREAST];
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) sums[q][v] = load_floats(to + q * apart + feature + v * 16);
    for (ptrdiff_t c = 0; c * two < tokens; c++) {
        const ptrdiff_t at = (c % rows * stride + feature) * CELL;
        const int half = two == 2 && c * two + 1 == tokens; /* nobody's value stands beside the last */
        Floats values[ABREAST];
        if (next)
            for (int v = 0; v < wide; v++) __builtin_prefetch(next[c / rows] + at + v * vector, 0, 2);
        UNROLL for (int v = 0; v < wide; v++) {
            values[v] = load_floats((const float *)(pages[c / rows] + at + v * vector));
            if (half) values[v] = first_of_pairs(values[v]);
        }
        UNROLL for (int q = 0; q < tall; q++)
            UNROLL for (int v = 0; v < wide; v++) sums[q][v] = add_cell(sums[q][v], values[v], type, weight + q * KEYS + c);
    }
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) store_floats(to + q * apart + feature + v * 16, sums[q][v], 16);
}

/* What made integers of a query or of its weights: a factor, and their sum, which counts as often as zero is 128. */
typedef struct {
    float factor;
    int32_t sum;
} Rounded;

INLINE Rounded to_integers(const float *x, ptrdiff_t count, int8_t *to) {
    const uint32_t bits = largest(x, count);
    float most;
    memcpy(&most, &bits, 4);
    const int some = most > 1e-30f && most < INFINITY;
    const int32_t sum = round_block(x, some ? count : 0, (count + 15) / 16 * 16, some ? 127 / most : 0, to);
    return (Rounded){some || most <= 1e-30f ? most / 127 : NAN, sum};
}

/* The same with four integers in a cell. */
INLINE void score_tile_int8(int tall, int wide, const int8_t *query, const Rounded *rounded, ptrdiff_t stride, ptrdiff_t cells, Pages pages,
                            Pages next, float *scores) {
    Ints sums[TALL][ABREAST];
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int p = 0; p < wide; p++) sums[q][p] = ints(-128 * rounded[q].sum);
    for (ptrdiff_t c = 0, at = 0; c < cells; c++, at += PAGE * CELL) {
        Codes keys[ABREAST];
        if (next)
            for (int p = 0; p < wide; p++) __builtin_prefetch(next[p] + at, 0, 2);
        UNROLL for (int p = 0; p < wide; p++) keys[p] = load(pages[p] + at);
        UNROLL for (int q = 0; q < tall; q++)
            UNROLL for (int p = 0; p < wide; p++) sums[q][p] = dot(sums[q][p], keys[p], four(query + q * stride + c * CELL));
    }
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int p = 0; p < wide; p++) {
            Floats scale = times(load_floats((const float *)(pages[p] + cells * PAGE * CELL)), floats(rounded[q].factor));
            store_floats(scores + q * KEYS + p * PAGE, times(to_floats(sums[q][p]), scale), 16);
        }
}

INLINE void value_tile_int8(int tall, int wide, const int8_t *weight, const Rounded *rounded, ptrdiff_t tokens, Pages pages,
                            Pages next, ptrdiff_t stride, ptrdiff_t feature, float *to, ptrdiff_t apart) {
    Ints sums[TALL][ABREAST];
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) sums[q][v] = ints(-128 * rounded[q].sum);
    for (ptrdiff_t c = 0; c * 4 < tokens; c++) {
        const ptrdiff_t page = c * 4 / PAGE, at = (c % (PAGE / 4) * stride + feature) * CELL;
        Codes values[ABREAST];
        if (next)
            for (int v = 0; v < wide; v++) __builtin_prefetch(next[page] + at + v * 64, 0, 2);
        UNROLL for (int v = 0; v < wide; v++) values[v] = load(pages[page] + at + v * 64);
        UNROLL for (int q = 0; q < tall; q++)
            UNROLL for (int v = 0; v < wide; v++) sums[q][v] = dot(sums[q][v], values[v], four(weight + q * KEYS + c * 4));
    }
    UNROLL for (int q = 0; q < tall; q++)
        UNROLL for (int v = 0; v < wide; v++) {
            float *at = to + q * apart + feature + v * 16;
            store_floats(at, add_product(load_floats(at), to_floats(sums[q][v]), floats(rounded[q].factor)), 16);
        }
}

INLINE void score_all(int type, const Attention *a, const float *query, const Rounded *rounded, ptrdiff_t count,
                      ptrdiff_t tokens, Pages pages, Pages next, float *scores) {
    const ptrdiff_t stride = wide_of(a), cells = cells_of(a), last = (tokens + PAGE - 1) / PAGE;
    if (type == INT8 && next)
        for (int p = 0; p < PAGES; p++) __builtin_prefetch(next[p] + key_codes(a), 0, 2);
    for (ptrdiff_t q = 0; q < count;) {
        const ptrdiff_t tall = count - q < TALL ? count - q : TALL;
        for (ptrdiff_t p = 0; p < last;) {
            const int all = last - p >= ABREAST;
            Pages ahead = q == 0 && next ? next + p : NULL;
            float *to = scores + q * KEYS + p * PAGE;
#define SCORES(rows, wide)                                                                                               \
    if (type == INT8)                                                                                                    \
        score_tile_int8(rows, wide, (const int8_t *)query + q * stride, rounded + q, stride, cells, pages + p, ahead, to); \
    else                                                                                                                 \
        score_tile(rows, wide, type, query + q * stride, stride, cells, pages + p, ahead, to);
#define TILE(rows)                       \
    if (tall == rows && all) {           \
        SCORES(rows, ABREAST)            \
    } else if (tall == rows) {           \
        SCORES(rows, 1)                  \
    }
            UP_TO(TALL)(TILE)
#undef TILE
#undef SCORES
            p += all ? ABREAST : 1;
        }
        q += tall;
    }
}

INLINE void value_all(int type, const Attention *a, const float *weight, const Rounded *rounded, ptrdiff_t count,
                      ptrdiff_t tokens, Pages pages, Pages next, float *to) {
    const ptrdiff_t stride = wide_of(a), apart = seen_of(a);
    if (type == INT8 && next)
        for (int p = 0; p < PAGES; p++) __builtin_prefetch(next[p] + value_codes(a), 0, 2);
    for (ptrdiff_t q = 0; q < count;) {
        const ptrdiff_t tall = count - q < TALL ? count - q : TALL;
        Pages ahead = q == 0 ? next : NULL;
        for (ptrdiff_t f = 0; f < stride;) {
            const int all = stride - f >= ABREAST * 16;
            float *sums = to + q * apart;
#define VALUES(rows, wide)                                                                                               \
    if (type == INT8)                                                                                                    \
        value_tile_int8(rows, wide, (const int8_t *)weight + q * KEYS, rounded + q, tokens, pages, ahead, stride, f, sums, \
                        apart);                                                                                          \
    else                                                                                                                 \
        value_tile(rows, wide, type, weight + q * KEYS, tokens, pages, ahead, stride, f, sums, apart);
#define TILE(rows)                       \
    if (tall == rows && all) {           \
        VALUES(rows, ABREAST)            \
    } else if (tall == rows) {           \
        VALUES(rows, 1)                  \
    }
            UP_TO(TALL)(TILE)
#undef TILE
#undef VALUES
            f += all ? ABREAST * 16 : 16;
        }
        q += tall;
    }
}

#define ATTEND(type)                                                                                                     \
    TARGET static void scores_##type(const Attention *a, const float *query, const Rounded *rounded, ptrdiff_t count,   \
                                     ptrdiff_t tokens, Pages pages, Pages next, float *scores) {                         \
        score_all(type, a, query, rounded, count, tokens, pages, next, scores);                                          \
    }                                                                                                                    \
    TARGET static void values_##type(const Attention *a, const float *weight, const Rounded *rounded, ptrdiff_t count,  \
                                     ptrdiff_t tokens, Pages pages, Pages next, float *to) {                             \
        value_all(type, a, weight, rounded, count, tokens, pages, next, to);                                             \
    }
ATTEND(FLOAT32) ATTEND(BFLOAT16) ATTEND(INT8)

typedef void (*Scores)(const Attention *, const float *, const Rounded *, ptrdiff_t, ptrdiff_t, Pages, Pages, float *);
typedef void (*Values)(const Attention *, const float *, const Rounded *, ptrdiff_t, ptrdiff_t, Pages, Pages, float *);
