/* Convolutions of images: patches of rounded inputs times panels. */

/* The work is shared out by blocks of output rows. The input rows that a block sees become integers once, with one scale, in
   a buffer of their own with their padding, channels innermost. There a patch is a few runs of neighbours: copied for some
   positions at a time, they are rows for the kernel, and no larger matrix of patches ever exists. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

enum { STRIP = 48, SLACK = 64 }; /* positions that are multiplied together; what rounding may write past its end */

typedef struct {
    ptrdiff_t channels, height, width; /* of an image */
    ptrdiff_t outputs, high, wide;     /* of what becomes of it */
    ptrdiff_t stride[2], before[2];    /* down and to the right; padding above and to the left */
    ptrdiff_t reach[2];                /* rows and columns that a patch spans */
    ptrdiff_t rows, groups;            /* output rows of a block; groups of channels that only see their own */
    ptrdiff_t runs;
    int levels, whole, last; /* of inputs; whether an image has one scale; whether channels are innermost */
} Conv;

typedef struct {
    int32_t row, from, to, count; /* of a patch: in this row of it, from there on, so many values; where they go */
} Run;

typedef struct {
    const Panels *w;
    const Kernel *kernel;
    const Conv *c;
    const Run *runs;
    const float *x;
    float *y;
    uint32_t *most; /* of each image, where it has one scale */
    char *scratch;
    size_t size; /* of the scratch of a thread */
} Task;

typedef struct {
    int8_t *seen, *line, *patches; /* rounded inputs, one row of a channel, and patches */
    float *xs, *y;
    int32_t *xt;
} Scratch;

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

/* Columns of a block's inputs with their padding, and values of a row of them. */
static ptrdiff_t columns(const Conv *c) { return (c->wide - 1) * c->stride[1] + c->reach[1]; }
static ptrdiff_t row_size(const Conv *c) { return columns(c) * c->channels; }
static ptrdiff_t seen_size(const Conv *c) { return ((c->rows - 1) * c->stride[0] + c->reach[0]) * row_size(c); }

/* The parts of a piece of memory, and its size. */
static size_t lay_out(const Panels *w, const Conv *c, char *from, Scratch *s) {
    const size_t blocks = (size_t)(w->width / w->block);
    const size_t sizes[] = {(size_t)seen_size(c) + SLACK, (size_t)c->width + SLACK, STRIP * (size_t)w->width,
                            STRIP * blocks * 4,           STRIP * blocks * 4,       STRIP * (size_t)c->outputs * 4};
    char *parts[6];
    size_t at = 0;
    for (int i = 0; i < 6; at += (sizes[i++] + 63) / 64 * 64) parts[i] = from ? from + at : NULL;
    *s = (Scratch){.seen = (int8_t *)parts[0], .line = (int8_t *)parts[1], .patches = (int8_t *)parts[2],
                   .xs = (float *)parts[3], .xt = (int32_t *)parts[4], .y = (float *)parts[5]};
    return at;
}

static void largest_of_images(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *t = given;
    const ptrdiff_t size = t->c->channels * t->c->height * t->c->width;
    (void)thread;
    for (ptrdiff_t n = first; n < last; n++) t->most[n] = t->kernel->largest(t->x + n * size, size);
}

/* The largest magnitude in some rows of an image: of each channel they lie together, or of all. */
static uint32_t largest_of_rows(const Task *t, const float *image, ptrdiff_t first, ptrdiff_t last) {
    const Conv *c = t->c;
    const ptrdiff_t pieces = c->last ? 1 : c->channels, row = c->width * c->channels / pieces;
    uint32_t most = 0;
    for (ptrdiff_t piece = 0; piece < pieces && first < last; piece++) {
        const uint32_t found = t->kernel->largest(image + (piece * c->height + first) * row, (last - first) * row);
        most = found > most ? found : most;
    }
    return most;
}

/* One row of an image to integers, channels innermost. */
static void round_row(const Task *t, const float *image, ptrdiff_t row, float factor, int8_t *line, int8_t *to) {
    const Conv *c = t->c;
    const ptrdiff_t n = larger(0, smaller(c->width, columns(c) - c->before[1]));
    to += c->before[1] * c->channels;
    if (c->last) {
        t->kernel->round(image + row * c->width * c->channels, n * c->channels, n * c->channels, factor, to);
        return;
    }
    for (ptrdiff_t channel = 0; channel < c->channels; channel++) {
        t->kernel->round(image + (channel * c->height + row) * c->width, n, n, factor, line);
        for (ptrdiff_t column = 0; column < n; column++) to[column * c->channels + channel] = line[column];
    }
}

/* The inputs that output rows `first` up to `last` of image `n` see, as integers; returns their scale. */
static float round_seen(const Task *t, ptrdiff_t n, ptrdiff_t first, ptrdiff_t last, const Scratch *s) {
    const Conv *c = t->c;
    const float *image = t->x + n * c->channels * c->height * c->width;
    const ptrdiff_t top = first * c->stride[0] - c->before[0], end = (last - 1) * c->stride[0] - c->before[0] + c->reach[0];
    const ptrdiff_t start = larger(top, 0), stop = smaller(end, c->height);
    const uint32_t bits = c->whole ? t->most[n] : largest_of_rows(t, image, start, stop);
    float most;
    memcpy(&most, &bits, 4);
    memset(s->seen, 0, (size_t)seen_size(c));
    if (!(most > TINY)) return isnan(most) ? NAN : 0;
    if (isinf(most)) return NAN;
    for (ptrdiff_t row = start; row < stop; row++)
        round_row(t, image, row, (float)c->levels / most, s->line, s->seen + (row - top) * row_size(c));
    return most / (float)c->levels;
}

/* The sum of integers of 8 bits, a number of whole chunks. They are made positive, and added in fields of 16 bits for as
   long as these cannot overflow. */
static int32_t total(const int8_t *x, ptrdiff_t count) {
    enum { WORDS = CHUNK / 8, MOST = 8 * CHUNK };
    const uint64_t even = 0x00FF00FF00FF00FF, offset = 0x8080808080808080;
    int32_t sum = (int32_t)(-128 * count);
    for (ptrdiff_t at = 0; at < count;) {
        uint64_t fields[WORDS] = {0}, together = 0;
        for (const ptrdiff_t end = smaller(count, at + MOST); at < end; at += CHUNK)
            for (int i = 0; i < WORDS; i++) {
                uint64_t word;
                memcpy(&word, x + at + i * 8, 8);
                fields[i] += ((word ^ offset) & even) + ((word ^ offset) >> 8 & even);
            }
        for (int i = 0; i < WORDS; i++) together += fields[i];
        sum += (int32_t)((together * 0x0001000100010001) >> 48);
    }
    return sum;
}

/* The patches of some positions of a block, of one group of channels, as rows for the kernel. */
static void gather(const Task *t, const Scratch *s, ptrdiff_t from, ptrdiff_t count, ptrdiff_t group, float scale) {
    const Conv *c = t->c;
    const ptrdiff_t width = t->w->width, block = t->w->block, blocks = width / block, row = row_size(c);
    ptrdiff_t down = from / c->wide, right = from % c->wide;
    for (ptrdiff_t m = 0; m < count; m++) {
        const int8_t *corner = s->seen + down * c->stride[0] * row + right * c->stride[1] * c->channels;
        int8_t *patch = s->patches + m * width;
        corner += group * (c->channels / c->groups);
        for (const Run *run = t->runs; run < t->runs + c->runs; run++)
            memcpy(patch + run->to, corner + run->row * row + run->from, (size_t)run->count);
        for (ptrdiff_t b = 0; b < blocks; b++) {
            s->xs[m * blocks + b] = scale;
            s->xt[m * blocks + b] = total(patch + b * block, block);
        }
        if (++right == c->wide) right = 0, down++;
    }
}

/* Rows of outputs of neighbouring positions to where each channel has its own map. */
static void spread(const float *y, ptrdiff_t count, ptrdiff_t outputs, ptrdiff_t map, float *to) {
    for (ptrdiff_t o = 0; o < outputs; o++)
        for (ptrdiff_t m = 0; m < count; m++) to[o * map + m] = y[m * outputs + o];
}

static void convolve(void *given, ptrdiff_t begin, ptrdiff_t end, int thread) {
    const Task *t = given;
    const Conv *c = t->c;
    const ptrdiff_t blocks = (c->high + c->rows - 1) / c->rows, panels = (c->outputs + LANES - 1) / LANES;
    Scratch s;
    lay_out(t->w, c, t->scratch + (size_t)thread * t->size, &s);
    memset(s.patches, 0, STRIP * (size_t)t->w->width); /* groups are filled up to whole chunks */
    for (ptrdiff_t at = begin; at < end; at++) {
        const ptrdiff_t n = at / blocks, first = at % blocks * c->rows, last = smaller(first + c->rows, c->high);
        const ptrdiff_t positions = (last - first) * c->wide;
        const float scale = round_seen(t, n, first, last, &s);
        for (ptrdiff_t from = 0; from < positions; from += STRIP) {
            const ptrdiff_t count = smaller(STRIP, positions - from), place = first * c->wide + from;
            const ptrdiff_t map = c->high * c->wide;
            float *y = c->last ? t->y + (n * map + place) * c->outputs : s.y;
            const Rows rows = {.count = count, .x = s.patches, .xs = s.xs, .xt = s.xt, .y = y, .stride = c->outputs};
            for (ptrdiff_t g = 0; g < c->groups; g++) {
                gather(t, &s, from, count, g, scale);
                t->kernel->multiply(t->w, &rows, g * panels / c->groups, (g + 1) * panels / c->groups);
            }
            if (!c->last) spread(y, count, c->outputs, map, t->y + n * c->outputs * map + place);
        }
    }
}

/* y = the convolution of so many images x with w; 0, or -1 where memory is short. */
EXPORT int lissom_conv(const Panels *w, const Conv *c, const Run *runs, const float *x, float *y, ptrdiff_t images,
                       int kernel, int threads) {
    Task t = {.w = w, .kernel = lissom_kernel(kernel), .c = c, .runs = runs, .x = x, .y = y};
    Scratch unused;
    threads = threads > MOST_THREADS ? MOST_THREADS : threads;
    t.size = lay_out(w, c, NULL, &unused);
    t.scratch = malloc(t.size * (size_t)threads);
    t.most = malloc(sizeof(uint32_t) * (size_t)images);
    const int failed = !(t.scratch && t.most);
    if (!failed) {
        if (c->whole) lissom_each_beside_torch(largest_of_images, &t, images, 1, threads);
        lissom_each_beside_torch(convolve, &t, images * ((c->high + c->rows - 1) / c->rows), 1, threads);
    }
    free(t.scratch);
    free(t.most);
    return -failed;
}
