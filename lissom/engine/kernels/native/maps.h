/* What is done to maps of images, written once for all instruction sets (tile.h says what these define). */

/* Beside that:

   OFFSET(s)            what a step's integers of inputs are moved by where they are unsigned, else 0
   ALONG                how many positions run together, as registers allow
   dot_signed(a, w, x)  a + sums of 4 products of signed weights with the 4 bytes of x
   offset_by(s, o)      what takes an offset out again: -o times sums of weights
   store_bytes(q, f, o) whole numbers next to floats, plus an offset
   SUMS_PAIRS           if products of unsigned inputs are summed in 16 bits, where there are bits to spare (pairs.h)
   magnitude, higher    the bits of |x|; the larger of two Ints

   Sums run in the same order as where layers run alone (tile.h), so that they give the same numbers. */
#include "images.h"

enum { UNSIGNED = DEEP + 1, FEW_BITS }; /* integers, where products are summed in pairs: one at a time, or several */

typedef struct {
    const Step *s;
    float *room;
    char *seen;
    ptrdiff_t first, last; /* output rows */
    float scale;           /* of the integers that they see */
} Band;

INLINE ptrdiff_t most_of(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
INLINE ptrdiff_t pixel_size(const Step *s) { return s->from.channels * (s->inputs == INTEGERS ? 1 : ENTRY); }
INLINE ptrdiff_t line_size(const Step *s) { return ((s->to.wide - 1) * s->stride[1] + s->reach[1]) * pixel_size(s); }

/* The largest magnitude in some rows of a map. */
TARGET static float magnitude_of_rows(const Map *m, const float *room, ptrdiff_t first, ptrdiff_t last) {
    const int32_t *rows = (const int32_t *)(room + m->most);
    int32_t most = 0;
    for (ptrdiff_t i = first * m->splits * VECTOR; i < last * m->splits * VECTOR; i++) most = rows[i] > most ? rows[i] : most;
    float value;
    memcpy(&value, &most, 4);
    return value;
}

/* What the rows of a block see, with its padding; integers get their scale. */
TARGET static void see(Band *b) {
    const Step *s = b->s;
    const Map *m = &s->from;
    const ptrdiff_t pixel = pixel_size(s), line = line_size(s), columns = line / pixel;
    const ptrdiff_t top = b->first * s->stride[0] - s->pad[0], end = (b->last - 1) * s->stride[0] - s->pad[0] + s->reach[0];
    const ptrdiff_t start = most_of(top, 0), stop = most_of(start, least(end, m->high));
    const ptrdiff_t left = least(s->pad[1], columns), there = least(m->wide, columns - left);
    const int integers = s->inputs == INTEGERS, nothing = integers ? OFFSET(s) : 0;
    int some = 1;
    float factor = 1;
    if (integers) {
        const float most = magnitude_of_rows(m, b->room, s->whole ? 0 : start, s->whole ? m->high : stop);
        some = most > 1e-36f && most < INFINITY;
        factor = some ? (float)s->levels / most : 0;
        b->scale = some ? most / (float)s->levels : most <= 1e-36f ? 0 : NAN;
    }
    for (ptrdiff_t row = top; row < end; row++) {
        char *to = b->seen + (row - top) * line, *inside = to + left * pixel;
        if (row < start || row >= stop || !some) {
            memset(to, nothing, (size_t)line);
            continue;
        }
        const float *from = b->room + m->at + row * m->wide * m->channels;
        memset(to, nothing, (size_t)(left * pixel));
        if (integers) EACH_16(j, there * m->channels) store_bytes(inside + j, times(load_floats(from + j), floats(factor)), nothing);
        else memcpy(inside, from, (size_t)(there * pixel));
        memset(inside + there * pixel, nothing, (size_t)(line - (left + there) * pixel));
    }
}

/* `tall` patches, from corners x on, times one vector of outputs, or two. */
INLINE void map_tile(int inputs, int tall, int halves, const Band *b, const char *const *x, ptrdiff_t vector, float *y) {
    const Step *s = b->s;
    const ptrdiff_t channels = s->to.channels, output = vector * VECTOR;
    const uint8_t *w = (const uint8_t *)s->weights + output * s->entries * ENTRY;
    const int integers = inputs != FLOATS && inputs != DEEP;
    const Stretch *stretch = s->stretches;
    Floats sums[ALONG][2];
    UNROLL for (int m = 0; m < tall; m++)
        UNROLL for (int h = 0; h < halves; h++) sums[m][h] = floats(0);
    for (ptrdiff_t part = 0; part < s->parts; part++) {
        Ints a[ALONG][2];
        const ptrdiff_t at = part * channels + output;
        if (integers)
            UNROLL for (int m = 0; m < tall; m++)
                UNROLL for (int h = 0; h < halves; h++) a[m][h] = offset_by(s->sums + at + h * VECTOR, OFFSET(s));
        for (const Stretch *end = stretch + s->runs; stretch < end; stretch++) {
#ifdef SUMS_PAIRS
            if (inputs == UNSIGNED || inputs == FEW_BITS) {
                w = pairs_of_stretch(tall, halves, inputs == UNSIGNED ? 1 : s->pairs, x, stretch, w, a);
                continue;
            }
#endif
            for (ptrdiff_t i = stretch->from; i < stretch->from + stretch->count * ENTRY; i += ENTRY, w += halves * 64) {
                Codes codes[2];
                Floats values[2];
                UNROLL for (int h = 0; h < halves; h++) {
                    if (inputs == INTEGERS) codes[h] = load(w + h * 64);
                    else values[h] = load_floats((const float *)(const void *)(w + h * 64));
                }
                UNROLL for (int m = 0; m < tall; m++) {
                    if (inputs == INTEGERS) {
                        const int32_t quartet = four((const int8_t *)x[m] + i);
                        UNROLL for (int h = 0; h < halves; h++) a[m][h] = dot_signed(a[m][h], codes[h], quartet);
                    } else if (inputs == FLOATS) {
                        float value;
                        memcpy(&value, x[m] + i, ENTRY);
                        UNROLL for (int h = 0; h < halves; h++) sums[m][h] = add_product(sums[m][h], values[h], floats(value));
                    } else {
                        const Floats own = load_floats((const float *)(const void *)(x[m] + i) + output);
                        sums[m][0] = add_product(sums[m][0], values[0], own);
                    }
                }
            }
        }
        if (integers)
            UNROLL for (int h = 0; h < halves; h++) {
                const Floats scale = times(load_floats(s->scale + at + h * VECTOR), floats(b->scale));
                UNROLL for (int m = 0; m < tall; m++) sums[m][h] = add_product(sums[m][h], scale, to_floats(a[m][h]));
            }
    }
    UNROLL for (int h = 0; h < halves; h++) {
        const Floats unit = load_floats(s->unit + output + h * VECTOR), bias = load_floats(s->bias + output + h * VECTOR);
        UNROLL for (int m = 0; m < tall; m++)
            store_floats(y + m * channels + output + h * VECTOR, add_product(bias, sums[m][h], unit), VECTOR);
    }
}

/* All positions of a block, for one vector of outputs, or two. */
INLINE void positions(int inputs, int halves, const Band *b, ptrdiff_t vector) {
    const Step *s = b->s;
    const Map *to = &s->to;
    const ptrdiff_t count = (b->last - b->first) * to->wide, tiles = (count + ALONG - 1) / ALONG;
    const ptrdiff_t down = s->stride[0] * line_size(s), right = s->stride[1] * pixel_size(s);
    const char *line = b->seen + vector * VECTOR * s->groups / to->channels * s->group;
    float *y = b->room + to->at + b->first * to->wide * to->channels;
    for (ptrdiff_t t = 0, done = 0, column = 0; t < tiles; t++) {
        const ptrdiff_t next = count * (t + 1) / tiles, tall = next - done;
        const char *x[ALONG];
        for (ptrdiff_t m = 0; m < tall; m++) {
            x[m] = line + column * right;
            if (++column == to->wide) column = 0, line += down;
        }
#define TILE(rows) if (tall == rows) map_tile(inputs, rows, halves, b, x, vector, y + done * to->channels);
        UP_TO(ALONG)(TILE)
#undef TILE
        done = next;
    }
}

#define POSITIONS(inputs, halves) \
    TARGET static void positions_##inputs##_##halves(const Band *b, ptrdiff_t vector) { positions(inputs, halves, b, vector); }
POSITIONS(INTEGERS, 1) POSITIONS(INTEGERS, 2) POSITIONS(FLOATS, 1) POSITIONS(FLOATS, 2) POSITIONS(DEEP, 1)
#ifdef SUMS_PAIRS
POSITIONS(UNSIGNED, 1) POSITIONS(UNSIGNED, 2) POSITIONS(FEW_BITS, 1) POSITIONS(FEW_BITS, 2)
#endif

/* The largest of a window of a map, or its mean, for one position of a block. */
INLINE void pool_position(const Step *s, const float *from, ptrdiff_t row, ptrdiff_t column, float *to) {
    const Map *m = &s->from;
    const ptrdiff_t at[] = {row, column}, sizes[] = {m->high, m->wide}, made[] = {s->to.high, s->to.wide};
    ptrdiff_t first[2], last[2];
    for (int d = 0; d < 2; d++) {
        const ptrdiff_t begin = s->adaptive ? at[d] * sizes[d] / made[d] : at[d] * s->stride[d] - s->pad[d];
        const ptrdiff_t end = s->adaptive ? ((at[d] + 1) * sizes[d] + made[d] - 1) / made[d] : begin + s->reach[d];
        first[d] = most_of(begin, 0), last[d] = least(end, sizes[d]);
    }
    const ptrdiff_t seen = (last[0] - first[0]) * (last[1] - first[1]);
    const ptrdiff_t count = s->inside || s->adaptive ? seen : s->reach[0] * s->reach[1];
    for (ptrdiff_t j = 0; j < m->channels; j += VECTOR) {
        Floats all = floats(s->mean ? 0 : -INFINITY);
        for (ptrdiff_t y = first[0]; y < last[0]; y++)
            for (ptrdiff_t x = first[1]; x < last[1]; x++) {
                const Floats one = load_floats(from + (y * m->wide + x) * m->channels + j);
                all = s->mean ? plus(all, one) : larger(all, one);
            }
        store_floats(to + j, s->mean ? over(all, floats((float)count)) : all, VECTOR);
    }
}

INLINE void pool(const Band *b) {
    const Map *to = &b->s->to;
    for (ptrdiff_t row = b->first; row < b->last; row++)
        for (ptrdiff_t column = 0; column < to->wide; column++)
            pool_position(b->s, b->room + b->s->from.at, row, column,
                          b->room + to->at + (row * to->wide + column) * to->channels);
}

/* x unit + bias, or x as it is. */
INLINE void point(const Band *b) {
    const Step *s = b->s;
    const ptrdiff_t channels = s->to.channels, row = s->to.wide * channels;
    for (ptrdiff_t at = b->first * row; at < b->last * row; at += channels)
        for (ptrdiff_t j = 0; j < channels; j += VECTOR) {
            Floats x = load_floats(b->room + s->from.at + at + j);
            if (s->unit) x = add_product(load_floats(s->bias + j), x, load_floats(s->unit + j));
            store_floats(b->room + s->to.at + at + j, x, VECTOR);
        }
}

INLINE void convolve(Band *b, ptrdiff_t first, ptrdiff_t last) {
    const Step *s = b->s;
    const ptrdiff_t of_group = s->to.channels / VECTOR / s->groups;
    see(b);
    for (ptrdiff_t vector = first; vector < last;) {
        const int two = s->inputs != DEEP && vector + 1 < last && (vector + 1) % of_group;
        if (s->inputs == DEEP) positions_DEEP_1(b, vector);
        else if (s->inputs == FLOATS) (two ? positions_FLOATS_2 : positions_FLOATS_1)(b, vector);
#ifdef SUMS_PAIRS
        else if (s->pairs > 1) (two ? positions_FEW_BITS_2 : positions_FEW_BITS_1)(b, vector);
        else if (s->pairs) (two ? positions_UNSIGNED_2 : positions_UNSIGNED_1)(b, vector);
#endif
        else (two ? positions_INTEGERS_2 : positions_INTEGERS_1)(b, vector);
        vector += 1 + two;
    }
}

/* What follows in the same pass, for numbers that lie side by side; returns the largest magnitudes. */
INLINE Ints follow_run(int before, int after, const float *other, float *y, ptrdiff_t count, Ints most) {
    EACH_16(j, count) {
        Floats made = gated(before, load_floats(y + j));
        if (other) made = gated(after, plus(made, load_floats(other + j)));
        store_floats(y + j, made, VECTOR);
        most = higher(most, magnitude(made));
    }
    return most;
}

/* The same, where what is usual is known when it is compiled. */
TARGET static Ints follow_one(const Step *s, float *y, const float *other, ptrdiff_t count, Ints most) {
    if (!other && s->before == NONE) return follow_run(NONE, NONE, NULL, y, count, most);
    if (!other && s->before == RELU) return follow_run(RELU, NONE, NULL, y, count, most);
    if (other && s->before == NONE && s->after == RELU) return follow_run(NONE, RELU, other, y, count, most);
    return follow_run(s->before, s->after, other, y, count, most);
}

/* For vectors `first` up to `last` of a band. */
INLINE void follow(const Band *b, ptrdiff_t split, ptrdiff_t first, ptrdiff_t last) {
    const Step *s = b->s;
    const Map *to = &s->to;
    const ptrdiff_t runs = to->splits == 1 ? 1 : to->wide, step = to->wide * to->channels / runs;
    const ptrdiff_t count = to->splits == 1 ? step : (last - first) * VECTOR;
    for (ptrdiff_t row = b->first; row < b->last; row++) {
        Ints most = ints(0);
        for (ptrdiff_t run = 0; run < runs; run++) {
            const ptrdiff_t at = (row * runs + run) * step + first * VECTOR;
            most = follow_one(s, b->room + to->at + at, s->other < 0 ? NULL : b->room + s->other + at, count, most);
        }
        store_ints((int32_t *)(b->room + to->most) + (row * to->splits + split) * VECTOR, most);
    }
}

TARGET static void image(const Step *s, float *room, char *seen, ptrdiff_t block, ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t begin = block * s->rows, vectors = s->to.channels / VECTOR, splits = s->to.splits;
    Band b = {.s = s, .room = room, .seen = seen, .first = begin, .last = least(begin + s->rows, s->to.high)};
    if (s->deed == POOL) pool(&b);
    if (s->deed == POINT) point(&b);
    if (s->deed == CONVOLVE) convolve(&b, first * vectors / splits, last * vectors / splits);
    for (ptrdiff_t split = first; split < last; split++)
        follow(&b, split, split * vectors / splits, (split + 1) * vectors / splits);
}
