/* Rows times a matrix as PyTorch holds it, written once for all instruction sets (tile.h says what these define). */

/* Both are read along the inputs: a tile is WIDE outputs times a few rows, each with a vector of sums. */
enum { WIDE = 4, SOME_ROWS = 48 };

INLINE Floats weights(const void *from, int type, ptrdiff_t at, ptrdiff_t left) {
    if (type == FLOAT32) return some_floats((const float *)from + at, left);
    uint16_t tail[16] = {0};
    const uint16_t *whole = (const uint16_t *)from + at;
    if (left < 16) {
        __builtin_memcpy(tail, whole, sizeof(uint16_t) * (size_t)left);
        whole = tail;
    }
    return type == FLOAT16 ? halves(whole) : brains(whole);
}

/* 16 bits of a stream of bits, of which `left` are read. */
INLINE unsigned bits_at(const uint8_t *from, ptrdiff_t at, ptrdiff_t left) {
    const ptrdiff_t count = left < 16 ? left : 16, last = (at + count - 1) / 8;
    unsigned found = 0;
    for (ptrdiff_t byte = at / 8, shift = 0; byte <= last; byte++, shift += 8) found |= (unsigned)from[byte] << shift;
    return found >> at % 8 & ((1u << count) - 1);
}

/* 16 weights of a row, of which only those are there that the mask says; `next` is the first of them. */
INLINE Floats masked_weights(const Dense *d, int type, ptrdiff_t at, ptrdiff_t left, ptrdiff_t *next) {
    const unsigned mask = bits_at(d->mask, at, left);
    const ptrdiff_t first = *next;
    *next += __builtin_popcount(mask);
    return spread(weights(d->weight, type, first, d->starts[d->outputs] - first), mask);
}

INLINE void dense_tile(int rows, int type, int masked, const Dense *d, const float *x, Columns to, int add, ptrdiff_t output) {
    const ptrdiff_t inputs = d->inputs, outputs = d->outputs - output < WIDE ? d->outputs - output : WIDE;
    Floats sums[TALL][WIDE];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int o = 0; o < WIDE; o++) sums[m][o] = floats(0);
    ptrdiff_t row[WIDE], next[WIDE];
    UNROLL for (int o = 0; o < WIDE; o++) {
        row[o] = output + (o < outputs ? o : 0);
        next[o] = masked ? d->starts[row[o]] : 0;
    }
    EACH_16(j, inputs) {
        Floats w[WIDE];
        UNROLL for (int o = 0; o < WIDE; o++) {
            const ptrdiff_t at = row[o] * inputs + j;
            w[o] = masked ? masked_weights(d, type, at, inputs - j, next + o) : weights(d->weight, type, at, inputs - j);
        }
        UNROLL for (int m = 0; m < rows; m++) {
            Floats v = some_floats(x + m * inputs + j, inputs - j);
            UNROLL for (int o = 0; o < WIDE; o++) sums[m][o] = add_product(sums[m][o], w[o], v);
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        for (int o = 0; o < outputs; o++) {
            float *y = to.at + m * to.stride + output + o;
            *y = total(sums[m][o]) + (d->bias ? d->bias[output + o] : 0) + (add ? *y : 0);
        }
}

INLINE void dense_of(int type, int masked, const Dense *d, const float *x, ptrdiff_t count, Columns to, int add, ptrdiff_t first,
                     ptrdiff_t last) {
    for (ptrdiff_t some = 0; some < count; some += SOME_ROWS) { /* that stay in the cache */
        const ptrdiff_t end = some + SOME_ROWS < count ? some + SOME_ROWS : count;
        for (ptrdiff_t output = first; output < last; output += WIDE)
            for (ptrdiff_t row = some; row < end;) {
                const ptrdiff_t height = end - row < TALL ? end - row : TALL;
                const Columns place = {to.at + row * to.stride, to.stride};
#define TILE(rows) if (height == rows) dense_tile(rows, type, masked, d, x + row * d->inputs, place, add, output);
                UP_TO(TALL)(TILE)
#undef TILE
                row += height;
            }
    }
}

#define DENSE(type, masked)                                                                                            \
    TARGET static void dense_##type##_##masked(const Dense *d, const float *x, ptrdiff_t count, Columns to, int add,  \
                                               ptrdiff_t first, ptrdiff_t last) {                                      \
        dense_of(type, masked, d, x, count, to, add, first, last);                                                     \
    }
DENSE(FLOAT32, 0) DENSE(BFLOAT16, 0) DENSE(FLOAT16, 0) DENSE(FLOAT32, 1) DENSE(BFLOAT16, 1) DENSE(FLOAT16, 1)

static void dense(const Dense *d, const float *x, ptrdiff_t count, Columns to, int add, ptrdiff_t first, ptrdiff_t last) {
    void (*const by_type[2][3])(const Dense *, const float *, ptrdiff_t, Columns, int, ptrdiff_t, ptrdiff_t) = {
        {dense_FLOAT32_0, dense_BFLOAT16_0, dense_FLOAT16_0}, {dense_FLOAT32_1, dense_BFLOAT16_1, dense_FLOAT16_1}};
    by_type[d->mask != NULL][d->type](d, x, count, to, add, first, last);
}
