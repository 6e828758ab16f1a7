/* The product of rows and a panel, written once for all instruction sets. */

/* Who includes this file defines

   Codes            64 unsigned bytes: 16 outputs times 4 inputs
   Ints, Floats     16 of them, one for each output
   load             Codes from memory
   field(v, s, b)   b bits from bit s of every byte, moved to bit 0
   high(v, s, c)    c with bit s of every byte of v as its bit 2
   sign(v, s)       2 where bit s of a byte is set, else 0
   look(c, t, n)    entries of n (1 or 4) tables, for codes
   dot(a, c, x)     a + sums of 4 products with the 4 signed bytes of x
   ...              and the few operations on Ints and Floats below
   TARGET           the attribute that lets a function use the instructions
   TALL             how many rows run together, as registers allow
   PANEL_ROWS       how many rows of integers do, if that is another number

   Sums of integers are exact and those of floats run block by block, so that a row's result does not depend on what else is
   computed beside it. */
#include <string.h>

/* What is done for each number of rows, a constant, from 1 up to the most. */
#define UP_TO_1(DO) DO(1)
#define UP_TO_2(DO) UP_TO_1(DO) DO(2)
#define UP_TO_3(DO) UP_TO_2(DO) DO(3)
#define UP_TO_4(DO) UP_TO_3(DO) DO(4)
#define UP_TO_5(DO) UP_TO_4(DO) DO(5)
#define UP_TO_6(DO) UP_TO_5(DO) DO(6)
#define UP_TO_7(DO) UP_TO_6(DO) DO(7)
#define UP_TO_8(DO) UP_TO_7(DO) DO(8)
#define PASTED(most) UP_TO_##most
#define UP_TO(most) PASTED(most)

#ifndef PANEL_ROWS
#define PANEL_ROWS TALL
#endif

#ifndef UNROLL
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum {
    HALVES = LANES / 16,
    AHEAD = 16384, /* bytes of codes that are fetched before they are needed, into the second cache */
};

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

INLINE void fetch_ahead(const uint8_t *codes, ptrdiff_t size) {
    UNROLL for (ptrdiff_t at = 0; at < size; at += 64) __builtin_prefetch(codes + AHEAD + at, 0, 2);
}

INLINE int32_t four(const int8_t *x) {
    int32_t together;
    memcpy(&together, x, 4);
    return together;
}

/* The codes of 4 inputs, the `part`-th of a chunk, of one half of a panel. */
INLINE Codes codes_at(const uint8_t *chunk, int bits, int part, int half) {
    if (bits == 8) return load(chunk + (part * HALVES + half) * 64);
    if (bits == 4) return field(load(chunk + (part / 2 * HALVES + half) * 64), part % 2 * 4, 4);
    if (bits == 1) return sign(load(chunk + half * 64), part);
    Codes low = field(load(chunk + (part / 4 * HALVES + half) * 64), part % 4 * 2, 2);
    return bits == 2 ? low : high(load(chunk + (2 * HALVES + half) * 64), part, low);
}

INLINE Codes values_at(const uint8_t *chunk, int bits, int books, const uint8_t *book, int part, int half) {
    Codes codes = codes_at(chunk, bits, part, half);
    return books ? look(codes, book + half * books * 64, books) : codes;
}

/* What a chunk adds to the sums of `rows` rows, with codes taken less SHIFT where they are not small. */
#ifdef SHIFT
#include "pairs.h"
#else
#define SHIFT 0
INLINE void chunk(int rows, int bits, int books, const uint8_t *codes, const uint8_t *book, const int8_t *x, ptrdiff_t width,
                  Ints a[][HALVES]) {
    UNROLL for (int part = 0; part < CHUNK / 4; part++) {
        Codes c[HALVES];
        UNROLL for (int h = 0; h < HALVES; h++) c[h] = values_at(codes, bits, books, book, part, h);
        UNROLL for (int m = 0; m < rows; m++) {
            int32_t inputs = four(x + m * width + part * 4);
            UNROLL for (int h = 0; h < HALVES; h++) a[m][h] = dot(a[m][h], c[h], inputs);
        }
    }
}
#endif

/* `rows` rows, a constant, from `row` on, times one panel. Its codes come from memory for the first rows, and are fetched
   ahead where so much is done to each that the processor does not find out by itself which will be next. For the rows
   behind them the places of their results are fetched: each store would wait for its own after the one before. */
INLINE void tile(int rows, int bits, int books, const Panels *w, const Rows *r, ptrdiff_t row, ptrdiff_t panel) {
    const int fetch = row == 0 && (bits < 8 || rows > 4);
    const int shift = bits == 8 || books ? SHIFT : 0;
    const ptrdiff_t blocks = w->width / w->block, step = bits * LANES * CHUNK / 8;
    const int8_t *x = r->x + row * w->width;
    const float *xs = r->xs + row * blocks;
    const int32_t *xt = r->xt + row * blocks;
    const uint8_t *codes = w->codes + panel * (w->width / CHUNK) * step;
    const uint8_t *book = books ? w->book + panel * HALVES * books * 64 : NULL;
    const float *results = r->y + row * r->stride + panel * LANES;
    Floats sums[PANEL_ROWS][HALVES];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int h = 0; h < HALVES; h++) {
            if (row > 0) __builtin_prefetch(results + m * r->stride + h * 16, 1);
            sums[m][h] = floats(0);
        }
    for (ptrdiff_t b = 0; b < blocks; b++) {
        Ints a[PANEL_ROWS][HALVES];
        if (w->zeros) {
            const uint8_t *zeros = w->zeros + (panel * blocks + b) * LANES;
            UNROLL for (int m = 0; m < rows; m++)
                for (int h = 0; h < HALVES; h++) a[m][h] = minus_product(zeros + h * 16, shift, xt[m * blocks + b]);
        } else {
            UNROLL for (int m = 0; m < rows; m++)
                for (int h = 0; h < HALVES; h++) a[m][h] = ints((shift - w->zero) * xt[m * blocks + b]);
        }
        for (ptrdiff_t k = b * w->block; k < (b + 1) * w->block; k += CHUNK, codes += step) {
            if (fetch) fetch_ahead(codes, step);
            chunk(rows, bits, books, codes, book, x + k, w->width, a);
        }
        const uint16_t *scale = w->scale + (panel * blocks + b) * LANES;
        UNROLL for (int h = 0; h < HALVES; h++) {
            Floats s = halves(scale + h * 16);
            UNROLL for (int m = 0; m < rows; m++)
                sums[m][h] = add_product(sums[m][h], times(s, floats(xs[m * blocks + b])), to_floats(a[m][h]));
        }
    }
    const ptrdiff_t first = panel * LANES, left = w->outputs - first;
    UNROLL for (int m = 0; m < rows; m++) {
        float *y = r->y + (row + m) * r->stride + first;
        UNROLL for (int h = 0; h < HALVES; h++) {
            Floats bias = w->bias ? load_floats(w->bias + first + h * 16) : floats(0);
            Floats done = add_product(bias, sums[m][h], load_floats(w->unit + first + h * 16));
            if (r->add) done = plus(done, some_floats(y + h * 16, left - h * 16));
            store_floats(y + h * 16, done, left - h * 16);
        }
    }
}

/* All rows times one panel, in tiles of as equal height as can be; codes are unpacked anew for each, which costs less than
   writing them down once. */
INLINE void one(int bits, int books, const Panels *w, const Rows *r, ptrdiff_t panel) {
    const ptrdiff_t tiles = (r->count + PANEL_ROWS - 1) / PANEL_ROWS;
    for (ptrdiff_t t = 0, row = 0; t < tiles; t++) {
        const ptrdiff_t next = r->count * (t + 1) / tiles, height = next - row;
#define TILE(rows) if (height == rows) tile(rows, bits, books, w, r, row, panel);
        UP_TO(PANEL_ROWS)(TILE)
#undef TILE
        row = next;
    }
}

#define OF(bits, books)                                                                                        \
    TARGET static void of_##bits##_##books(const Panels *w, const Rows *r, ptrdiff_t panel) { \
        one(bits, books, w, r, panel);                                                                 \
    }
OF(1, 0) OF(2, 0) OF(3, 0) OF(4, 0) OF(8, 0)
OF(2, 1) OF(3, 1) OF(4, 1)
OF(2, 4) OF(3, 4) OF(4, 4)

static void multiply(const Panels *w, const Rows *r, ptrdiff_t first, ptrdiff_t last) {
    static void (*const by_bits[3][9])(const Panels *, const Rows *, ptrdiff_t) = {
        {NULL, of_1_0, of_2_0, of_3_0, of_4_0, NULL, NULL, NULL, of_8_0},
        {NULL, NULL, of_2_1, of_3_1, of_4_1},
        {NULL, NULL, of_2_4, of_3_4, of_4_4},
    };
    for (ptrdiff_t panel = first; panel < last; panel++) by_bits[(w->books + 1) / 2][w->bits](w, r, panel);
}
