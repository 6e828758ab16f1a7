/* The product of rows and a panel, written once for all instruction sets. */

/* Who includes this file defines

   Codes            64 unsigned bytes: 16 outputs times 4 inputs
   Ints, Floats     16 of them, one for each output
   load, store      Codes from and to memory
   field(v, s, b)   b bits from bit s of every byte, moved to bit 0
   high(v, s, c)    c with bit s of every byte of v as its bit 2
   sign(v, s)       2 where bit s of a byte is set, else 0
   look(c, t, n)    entries of n (1 or 4) tables, for codes
   dot(a, c, x)     a + sums of 4 products with the 4 signed bytes of x
   ...              and the few operations on Ints and Floats below

   TARGET, the attribute that lets a function use the instructions, DIRECT and TALL, for how many rows of inputs codes are
   unpacked as they are read, and how many run together where they were unpacked before (as registers allow).

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
#define PASTED(most) UP_TO_##most
#define UP_TO(most) PASTED(most)

#ifndef UNROLL
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { AHEAD = 16384 }; /* bytes of codes that are fetched before they are needed */
enum { HALVES = LANES / 16, MOST = DIRECT > TALL ? DIRECT : TALL };

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

/* `rows` rows, a constant, times blocks `from` up to `to` of one panel, whose codes begin at `codes`. Between its first and
   its last blocks a panel's sums are `waiting`, LANES for each row. Codes that come from memory may have to be fetched:
   what few rows do to them is so quick that the processor finds out by itself which will be next. */
INLINE void tile(int rows, int bits, int books, int fetch, const Panels *w, const Rows *r, ptrdiff_t row, ptrdiff_t panel,
                 const uint8_t *codes, ptrdiff_t from, ptrdiff_t to, float *waiting) {
    const ptrdiff_t blocks = w->width / w->block, step = bits * LANES * CHUNK / 8;
    const int8_t *x = r->x + row * w->width;
    const float *xs = r->xs + row * blocks;
    const int32_t *xt = r->xt + row * blocks;
    const uint8_t *book = books ? w->book + panel * HALVES * books * 64 : NULL;
    Floats sums[MOST][HALVES];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int h = 0; h < HALVES; h++)
            sums[m][h] = from ? load_floats(waiting + (row + m) * LANES + h * 16) : floats(0);
    for (ptrdiff_t b = from; b < to; b++) {
        Ints a[MOST][HALVES];
        if (w->zeros) {
            const uint8_t *zeros = w->zeros + (panel * blocks + b) * LANES;
            UNROLL for (int m = 0; m < rows; m++)
                for (int h = 0; h < HALVES; h++) a[m][h] = minus_product(zeros + h * 16, xt[m * blocks + b]);
        } else {
            UNROLL for (int m = 0; m < rows; m++)
                for (int h = 0; h < HALVES; h++) a[m][h] = ints(-w->zero * xt[m * blocks + b]);
        }
        for (ptrdiff_t k = b * w->block; k < (b + 1) * w->block; k += CHUNK, codes += step) {
            if (fetch) fetch_ahead(codes, step);
            UNROLL for (int part = 0; part < CHUNK / 4; part++) {
                Codes c[HALVES];
                UNROLL for (int h = 0; h < HALVES; h++) c[h] = values_at(codes, bits, books, book, part, h);
                UNROLL for (int m = 0; m < rows; m++) {
                    int32_t inputs = four(x + m * w->width + k + part * 4);
                    UNROLL for (int h = 0; h < HALVES; h++) a[m][h] = dot(a[m][h], c[h], inputs);
                }
            }
        }
        const uint16_t *scale = w->scale + (panel * blocks + b) * LANES;
        UNROLL for (int h = 0; h < HALVES; h++) {
            Floats s = halves(scale + h * 16);
            UNROLL for (int m = 0; m < rows; m++)
                sums[m][h] = add_product(sums[m][h], times(s, floats(xs[m * blocks + b])), to_floats(a[m][h]));
        }
    }
    if (to < blocks) {
        UNROLL for (int m = 0; m < rows; m++)
            UNROLL for (int h = 0; h < HALVES; h++) store_floats(waiting + (row + m) * LANES + h * 16, sums[m][h], 16);
        return;
    }
    const ptrdiff_t first = panel * LANES, left = w->outputs - first;
    UNROLL for (int m = 0; m < rows; m++) {
        float *y = r->y + (row + m) * w->outputs + first;
        UNROLL for (int h = 0; h < HALVES; h++) {
            Floats bias = w->bias ? load_floats(w->bias + first + h * 16) : floats(0);
            Floats done = add_product(bias, sums[m][h], load_floats(w->unit + first + h * 16));
            store_floats(y + h * 16, done, left - h * 16);
        }
    }
}

INLINE void unpack(int bits, int books, const uint8_t *book, const uint8_t *codes, ptrdiff_t inputs, uint8_t *to) {
    for (ptrdiff_t k = 0; k < inputs; k += CHUNK, codes += bits * LANES * CHUNK / 8) {
        fetch_ahead(codes, bits * LANES * CHUNK / 8);
        UNROLL for (int part = 0; part < CHUNK / 4; part++)
            UNROLL for (int h = 0; h < HALVES; h++, to += 64) store(to, values_at(codes, bits, books, book, part, h));
    }
}

/* Any number of rows, shared out evenly over tiles, times blocks of a panel's codes that are bytes. */
TARGET static void many(const Panels *w, const Rows *r, ptrdiff_t panel, const uint8_t *codes, ptrdiff_t from,
                        ptrdiff_t to, float *waiting, int fetch) {
    const ptrdiff_t tiles = (r->count + TALL - 1) / TALL;
    for (ptrdiff_t t = 0, row = 0; t < tiles; t++) {
        const ptrdiff_t next = r->count * (t + 1) / tiles, height = next - row;
#define TILE(rows)                                                                              \
    if (height == rows && row == 0 && fetch) tile(rows, 8, 0, 1, w, r, row, panel, codes, from, to, waiting); \
    else if (height == rows) tile(rows, 8, 0, 0, w, r, row, panel, codes, from, to, waiting);
        UP_TO(TALL)(TILE)
#undef TILE
        row = next;
    }
}

/* Few rows unpack codes as they go; for more they are unpacked first, as many as the nearest cache holds. */
INLINE void one(int bits, int books, const Panels *w, const Rows *r, ptrdiff_t panel, Scratch *scratch) {
    const ptrdiff_t blocks = w->width / w->block, size = LANES * w->block * bits / 8, span = SPAN / w->block;
    const uint8_t *codes = w->codes + panel * blocks * size, *book = books ? w->book + panel * HALVES * books * 64 : NULL;
#define TILE(rows) if (r->count == rows) tile(rows, bits, books, bits < 8 || rows > 4, w, r, 0, panel, codes, 0, blocks, scratch->sums);
    UP_TO(DIRECT)(TILE)
#undef TILE
    if (r->count <= DIRECT) return;
    for (ptrdiff_t from = 0; from < blocks; from += span) {
        const ptrdiff_t to = from + span < blocks ? from + span : blocks;
        const uint8_t *here = codes + from * size;
        if (bits < 8) {
            unpack(bits, books, book, here, (to - from) * w->block, scratch->codes);
            here = scratch->codes;
        }
        many(w, r, panel, here, from, to, scratch->sums, bits == 8);
    }
}

#define OF(bits, books)                                                                                        \
    TARGET static void of_##bits##_##books(const Panels *w, const Rows *r, ptrdiff_t panel, Scratch *scratch) { \
        one(bits, books, w, r, panel, scratch);                                                                 \
    }
OF(1, 0) OF(2, 0) OF(3, 0) OF(4, 0) OF(8, 0)
OF(2, 1) OF(3, 1) OF(4, 1)
OF(2, 4) OF(3, 4) OF(4, 4)

static void multiply(const Panels *w, const Rows *r, ptrdiff_t first, ptrdiff_t last, Scratch *scratch) {
    static void (*const by_bits[3][9])(const Panels *, const Rows *, ptrdiff_t, Scratch *) = {
        {NULL, of_1_0, of_2_0, of_3_0, of_4_0, NULL, NULL, NULL, of_8_0},
        {NULL, NULL, of_2_1, of_3_1, of_4_1},
        {NULL, NULL, of_2_4, of_3_4, of_4_4},
    };
    for (ptrdiff_t panel = first; panel < last; panel++) by_bits[(w->books + 1) / 2][w->bits](w, r, panel, scratch);
}
