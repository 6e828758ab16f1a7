/* Rows times a matrix as PyTorch holds it, written once for all instruction sets (tile.h says what these define). */

/* Both are read along the inputs: a tile is WIDE outputs times a few rows, each with a vector of sums. */
enum { WIDE = 4, SOME_ROWS = 48, SOME_INPUTS = 512 };

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

/* 16 bits of a stream of bits, of which `left` are read. */
INLINE unsigned bits_at(const uint8_t *from, ptrdiff_t at, ptrdiff_t left) {
    const ptrdiff_t count = left < 16 ? left : 16, last = (at + count - 1) / 8;
    if (at % 8 == 0 && count == 16) return from[at / 8] | (unsigned)from[at / 8 + 1] << 8;
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

/* Outputs that are computed together: `count` of them, the last one again where there are fewer than WIDE. */
typedef struct {
    ptrdiff_t row[WIDE], next[WIDE]; /* of the matrix, and the weight that is read next where it is masked */
} Outputs;

/* Inputs `first` up to `last` of some rows and outputs are added to their sums, which stand one after the other. */
INLINE Outputs dense_tile(int rows, int type, int masked, const Dense *d, const float *x, Outputs of, ptrdiff_t first,
                          ptrdiff_t last, float *partial) {
    const ptrdiff_t inputs = d->inputs;
    Floats sums[TALL][WIDE];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int o = 0; o < WIDE; o++) sums[m][o] = load_floats(partial + (m * WIDE + o) * 16);
    for (ptrdiff_t j = first; j < last; j += 16) {
        Floats w[WIDE];
        UNROLL for (int o = 0; o < WIDE; o++) {
            const ptrdiff_t at = of.row[o] * inputs + j;
            w[o] = masked ? masked_weights(d, type, at, inputs - j, of.next + o) : weights(d->weight, type, at, inputs - j);
        }
        UNROLL for (int m = 0; m < rows; m++) {
            Floats v = some_floats(x + m * inputs + j, inputs - j);
            UNROLL for (int o = 0; o < WIDE; o++) sums[m][o] = add_product(sums[m][o], w[o], v);
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int o = 0; o < WIDE; o++) store_floats(partial + (m * WIDE + o) * 16, sums[m][o], 16);
    return of;
}

/* Some rows, and up to WIDE outputs from `output` on. Inputs are taken in parts that stay in the first cache. */
INLINE void dense_rows(int type, int masked, const Dense *d, const float *x, ptrdiff_t count, Columns to, int add,
                       ptrdiff_t output) {
    const ptrdiff_t outputs = d->outputs - output < WIDE ? d->outputs - output : WIDE;
    float partial[SOME_ROWS * WIDE * 16];
    memset(partial, 0, sizeof(float) * (size_t)(count * WIDE * 16));
    Outputs of, after;
    for (int o = 0; o < WIDE; o++) {
        of.row[o] = output + (o < outputs ? o : outputs - 1);
        of.next[o] = masked ? d->starts[of.row[o]] : 0;
    }
    for (ptrdiff_t first = 0; first < d->inputs; first += SOME_INPUTS, of = after) {
        const ptrdiff_t last = d->inputs - first < SOME_INPUTS ? d->inputs : first + SOME_INPUTS;
        for (ptrdiff_t row = 0; row < count;) {
            const ptrdiff_t height = count - row < TALL ? count - row : TALL;
            float *sums = partial + row * WIDE * 16;
#define TILE(rows) if (height == rows) after = dense_tile(rows, type, masked, d, x + row * d->inputs, of, first, last, sums);
            UP_TO(TALL)(TILE)
#undef TILE
            row += height;
        }
    }
    for (ptrdiff_t m = 0; m < count; m++)
        for (ptrdiff_t o = 0; o < outputs; o++) {
            float *y = to.at + m * to.stride + output + o;
            *y = total(load_floats(partial + (m * WIDE + o) * 16)) + (d->bias ? d->bias[output + o] : 0) + (add ? *y : 0);
        }
}

INLINE void dense_of(int type, int masked, const Dense *d, const float *x, ptrdiff_t count, Columns to, int add,
                     ptrdiff_t first, ptrdiff_t last) {
    for (ptrdiff_t row = 0; row < count; row += SOME_ROWS) {
        const ptrdiff_t some = count - row < SOME_ROWS ? count - row : SOME_ROWS;
        const Columns place = {to.at + row * to.stride, to.stride};
        for (ptrdiff_t output = first; output < last; output += WIDE)
            dense_rows(type, masked, d, x + row * d->inputs, some, place, add, output);
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
