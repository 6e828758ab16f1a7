/* Rows times a matrix as PyTorch holds it, written once for all instruction sets (tile.h says what these define). */

/* Both are read along the inputs: a tile is WIDE outputs times a few rows, each with a vector of sums. Rows of bfloat16 are
   multiplied with weights of bfloat16 as they are, two by two; else both become floats. Of a masked matrix the weights are
   first spread to their places, some inputs at a time. */
enum {
    WIDE = 4, SOME_ROWS = 48, SOME_INPUTS = 2048,
    SPREAD = 32,  /* weights that are spread at once */
    FETCH = 8192, /* bytes of weights that are fetched before they are needed, into the second cache */
};

INLINE Floats weights(const void *from, int type, ptrdiff_t at, ptrdiff_t left) {
    if (type == FLOAT32) return some_floats((const float *)from + at, left);
    uint16_t tail[16] = {0};
    const uint16_t *whole = (const uint16_t *)from + at;
    if (left < 16) {
        if (left > 0) __builtin_memcpy(tail, whole, sizeof(uint16_t) * (size_t)left);
        whole = tail;
    }
    return type == FLOAT16 ? halves(whole) : brains(whole);
}

INLINE ptrdiff_t bytes_of(int type) { return type == FLOAT32 ? 4 : 2; }
INLINE const void *moved(const void *from, int type, ptrdiff_t count) { return (const char *)from + count * bytes_of(type); }

#ifndef SPREADS /* there is no instruction for it */
#define SPREAD_OF(bits)                                                                         \
    INLINE void spread_##bits(uint##bits##_t *to, const uint##bits##_t *from, uint32_t mask) {  \
        for (int i = 0; i < SPREAD; i++) {                                                      \
            const uint##bits##_t there = mask >> i & 1;                                         \
            to[i] = (uint##bits##_t)(*from * there);                                            \
            from += there;                                                                      \
        }                                                                                       \
    }
SPREAD_OF(16) SPREAD_OF(32)
#endif

/* Bits of a stream of bits, SPREAD of them or as many as are left. */
INLINE uint32_t bits_at(const uint8_t *from, ptrdiff_t at, ptrdiff_t left) {
    uint64_t found = 0;
    if (at % 8 == 0 && left >= SPREAD) {
        __builtin_memcpy(&found, from + at / 8, SPREAD / 8);
        return (uint32_t)found;
    }
    const ptrdiff_t count = left < SPREAD ? left : SPREAD, last = (at + count - 1) / 8;
    for (ptrdiff_t byte = at / 8, shift = 0; byte <= last; byte++, shift += 8) found |= (uint64_t)from[byte] << shift;
    return (uint32_t)(found >> at % 8 & ((1ull << count) - 1));
}

/* `count` weights of a row of a masked matrix, from `at` on; the first of them is number `next` of those that are kept.
   Returns the number of the one behind them. */
INLINE ptrdiff_t spread(const Dense *d, int type, ptrdiff_t at, ptrdiff_t count, ptrdiff_t next, void *to) {
    const ptrdiff_t end = d->starts[d->outputs];
    const uint8_t *bits = d->mask;
    const void *kept = d->weight;
    uint32_t last[SPREAD] = {0};
    for (ptrdiff_t j = 0; j < count; j += SPREAD) {
        const uint32_t mask = bits_at(bits, at + j, count - j);
        const void *from = moved(kept, type, next);
        if (end - next >= SPREAD) __builtin_prefetch((const char *)from + FETCH, 0, 2);
        else from = end > next ? __builtin_memcpy(last, from, (size_t)((end - next) * bytes_of(type))) : last;
        if (type == FLOAT32) spread_32((uint32_t *)to + j, from, mask);
        else spread_16((uint16_t *)to + j, from, mask);
        next += __builtin_popcount(mask);
    }
    return next;
}

/* `count` inputs of some rows and outputs are added to their sums, which stand one after the other. Weights that lie in memory
   are fetched ahead, unless there are rows enough to wait for. */
INLINE void dense_tile(int rows, int type, int from, int masked, const void *const *w, const void *x, ptrdiff_t inputs,
                       ptrdiff_t count, float *partial) {
    Floats sums[TALL][WIDE];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int o = 0; o < WIDE; o++) sums[m][o] = load_floats(partial + (m * WIDE + o) * 16);
    for (ptrdiff_t j = 0; j < count; j += from == BFLOAT16 ? 32 : 16) {
        Floats all[WIDE];
        if (!masked && rows < TALL)
            UNROLL for (int o = 0; o < WIDE; o++) __builtin_prefetch((const char *)moved(w[o], type, j) + FETCH, 0, 2);
        UNROLL for (int o = 0; o < WIDE; o++)
            all[o] = from == BFLOAT16 ? some_brains((const uint16_t *)w[o] + j, count - j) : weights(w[o], type, j, count - j);
        UNROLL for (int m = 0; m < rows; m++) {
            const void *at = moved(x, from, m * inputs + j);
            Floats v = from == BFLOAT16 ? some_brains(at, count - j) : some_floats(at, count - j);
            UNROLL for (int o = 0; o < WIDE; o++)
                sums[m][o] = from == BFLOAT16 ? add_products(sums[m][o], all[o], v) : add_product(sums[m][o], all[o], v);
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int o = 0; o < WIDE; o++) store_floats(partial + (m * WIDE + o) * 16, sums[m][o], 16);
}

/* Some rows, and up to WIDE outputs from `output` on, the last one again where there are fewer. Inputs are taken in parts
   that stay in the first cache. */
INLINE void dense_rows(int type, int from, int masked, const Dense *d, const void *x, ptrdiff_t count, Columns to, int add,
                       ptrdiff_t output) {
    const ptrdiff_t outputs = d->outputs - output < WIDE ? d->outputs - output : WIDE;
    float partial[SOME_ROWS * WIDE * 16];
    uint32_t room[WIDE][SOME_INPUTS];
    ptrdiff_t row[WIDE], next[WIDE];
    memset(partial, 0, sizeof(float) * (size_t)(count * WIDE * 16));
    for (int o = 0; o < WIDE; o++) {
        row[o] = output + (o < outputs ? o : outputs - 1);
        next[o] = masked ? d->starts[row[o]] : 0;
    }
    for (ptrdiff_t first = 0; first < d->inputs; first += SOME_INPUTS) {
        const ptrdiff_t some = d->inputs - first < SOME_INPUTS ? d->inputs - first : SOME_INPUTS;
        const void *w[WIDE];
        for (int o = 0; o < WIDE; o++) {
            const ptrdiff_t at = row[o] * d->inputs + first;
            if (masked) next[o] = spread(d, type, at, some, next[o], room[o]);
            w[o] = masked ? room[o] : moved(d->weight, type, at);
        }
        for (ptrdiff_t m = 0; m < count;) {
            const ptrdiff_t height = count - m < TALL ? count - m : TALL;
            const void *rows = moved(x, from, m * d->inputs + first);
#define TILE(tall) \
    if (height == tall) dense_tile(tall, type, from, masked, w, rows, d->inputs, some, partial + m * WIDE * 16);
            UP_TO(TALL)(TILE)
#undef TILE
            m += height;
        }
    }
    for (ptrdiff_t m = 0; m < count; m++)
        for (ptrdiff_t o = 0; o < outputs; o++) {
            float *y = to.at + m * to.stride + output + o;
            *y = total(load_floats(partial + (m * WIDE + o) * 16)) + (d->bias ? d->bias[output + o] : 0) + (add ? *y : 0);
        }
}

INLINE void dense_of(int type, int from, int masked, const Dense *d, const void *x, ptrdiff_t count, Columns to, int add,
                     ptrdiff_t first, ptrdiff_t last) {
    for (ptrdiff_t row = 0; row < count; row += SOME_ROWS) {
        const ptrdiff_t some = count - row < SOME_ROWS ? count - row : SOME_ROWS;
        const Columns place = {to.at + row * to.stride, to.stride};
        for (ptrdiff_t output = first; output < last; output += WIDE)
            dense_rows(type, from, masked, d, moved(x, from, row * d->inputs), some, place, add, output);
    }
}

typedef void DenseOf(const Dense *d, const void *x, ptrdiff_t count, Columns to, int add, ptrdiff_t first, ptrdiff_t last);

#define DENSE(type, from, masked)                                                                                           \
    TARGET static void dense_##type##_##from##_##masked(const Dense *d, const void *x, ptrdiff_t count, Columns to, int add, \
                                                        ptrdiff_t first, ptrdiff_t last) {                                  \
        dense_of(type, from, masked, d, x, count, to, add, first, last);                                                    \
    }
#define DENSE_OR_MASKED(type, from) DENSE(type, from, 0) DENSE(type, from, 1)
DENSE_OR_MASKED(FLOAT32, FLOAT32) DENSE_OR_MASKED(BFLOAT16, FLOAT32) DENSE_OR_MASKED(FLOAT16, FLOAT32)
DENSE_OR_MASKED(BFLOAT16, BFLOAT16)

static void dense(const Dense *d, const void *x, ptrdiff_t count, Columns to, int add, ptrdiff_t first, ptrdiff_t last) {
    static DenseOf *const by_type[2][4] = {
        {dense_FLOAT32_FLOAT32_0, dense_BFLOAT16_FLOAT32_0, dense_FLOAT16_FLOAT32_0, dense_BFLOAT16_BFLOAT16_0},
        {dense_FLOAT32_FLOAT32_1, dense_BFLOAT16_FLOAT32_1, dense_FLOAT16_FLOAT32_1, dense_BFLOAT16_BFLOAT16_1}};
    by_type[d->mask != NULL][d->from == BFLOAT16 ? 3 : d->type](d, x, count, to, add, first, last);
}
