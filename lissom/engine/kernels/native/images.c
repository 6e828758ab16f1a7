/* A network for images, as steps that Python has put together: all of them for one image after the other. */

/* Each thread takes images of its own, whose maps stay near the processor from one step to the next. Where there are fewer
   images than threads, all work on one step: who is free takes the next block, and waits until all blocks are done. */
#define _POSIX_C_SOURCE 200809L
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"
#include "pool.h"

enum { GLANCES = 4096 }; /* at what others do, before the processor is left to them */

/* How far the blocks of a step are, in a line of memory of its own. */
typedef struct {
    _Atomic ptrdiff_t taken, done;
    char apart[64 - 2 * sizeof(ptrdiff_t)];
} Progress;

typedef struct {
    const Step *steps, *end;
    const Kernel *kernel;
    float *rooms;
    char *seen;
    ptrdiff_t room, size; /* floats of a room, and bytes of what a thread sees */
    const Outside *x, *y; /* the input, and the outputs */
    ptrdiff_t images;
    Progress *progress;
} Task;

/* The largest magnitude of a row, where all its channels are made at once. */
static void note(const Map *m, const Kernel *kernel, float *room, ptrdiff_t row) {
    uint32_t *most = (uint32_t *)room + m->most + row * VECTOR;
    memset(most, 0, sizeof(uint32_t) * VECTOR);
    *most = kernel->largest(room + m->at + row * m->wide * m->channels, m->wide * m->channels);
}

/* Rows of an image become rows of a map, channels innermost. */
static void enter(const Step *s, const Kernel *kernel, const Outside *x, float *room, ptrdiff_t n, ptrdiff_t row) {
    const Map *to = &s->to;
    float *pixels = room + to->at + row * to->wide * to->channels;
    const float *from = x->at + n * x->image + row * x->row;
    memset(pixels, 0, sizeof(float) * (size_t)(to->wide * to->channels));
    for (ptrdiff_t c = 0; c < s->channels; c++)
        for (ptrdiff_t column = 0; column < to->wide; column++)
            pixels[column * to->channels + c] = from[c * x->channel + column * x->column];
    note(to, kernel, room, row);
}

static void leave(const Step *s, const Outside *y, const float *room, ptrdiff_t n, ptrdiff_t row) {
    const Map *from = &s->from;
    const float *pixels = room + from->at + row * from->wide * from->channels;
    float *to = y[s->output].at + n * y[s->output].image + row * y[s->output].row;
    for (ptrdiff_t c = 0; c < s->channels; c++)
        for (ptrdiff_t column = 0; column < from->wide; column++)
            to[c * y[s->output].channel + column * y[s->output].column] = pixels[column * from->channels + c];
}

/* Every so many pixels of a map, as channels of another from `channel` on. The first that is copied clears the rest. */
static void copy(const Step *s, const Kernel *kernel, float *room, ptrdiff_t row) {
    const Map *from = &s->from, *to = &s->to;
    const float *source = room + from->at + row * s->stride[0] * from->wide * from->channels;
    float *pixels = room + to->at + row * to->wide * to->channels;
    for (ptrdiff_t column = 0; column < to->wide; column++) {
        float *pixel = pixels + column * to->channels;
        if (s->whole) memset(pixel, 0, sizeof(float) * (size_t)to->channels);
        memcpy(pixel + s->channel, source + column * s->stride[1] * from->channels, sizeof(float) * (size_t)s->channels);
    }
    note(to, kernel, room, row);
}

static ptrdiff_t blocks_of(const Step *s) { return (s->to.high + s->rows - 1) / s->rows; }

static void do_block(const Task *t, const Step *s, ptrdiff_t n, ptrdiff_t room, int thread, ptrdiff_t block, ptrdiff_t first,
                     ptrdiff_t last) {
    float *own = t->rooms + room * t->room;
    if (s->deed == CONVOLVE || s->deed == POOL || s->deed == POINT) {
        t->kernel->image(s, own, t->seen + thread * t->size, block, first, last);
        return;
    }
    for (ptrdiff_t row = block * s->rows; row < (block + 1) * s->rows && row < s->to.high; row++) {
        if (s->deed == ENTER) enter(s, t->kernel, t->x, own, n, row);
        if (s->deed == LEAVE) leave(s, t->y, own, n, row);
        if (s->deed == COPY) copy(s, t->kernel, own, row);
    }
}

static void each_image(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *t = given;
    for (ptrdiff_t n = first; n < last; n++)
        for (const Step *s = t->steps; s < t->end; s++)
            for (ptrdiff_t block = 0; block < blocks_of(s); block++) do_block(t, s, n, thread, thread, block, 0, s->to.splits);
}

/* All steps, together with whoever else does this: a thread that comes late finds what is done, and goes on from there. */
static void each_block(void *given, ptrdiff_t first, ptrdiff_t last, int thread) {
    const Task *t = given;
    (void)first, (void)last;
    for (const Step *s = t->steps; s < t->end; s++) {
        Progress *p = t->progress + (s - t->steps);
        const ptrdiff_t splits = s->to.splits, blocks = blocks_of(s) * splits, all = t->images * blocks;
        for (ptrdiff_t i; (i = atomic_fetch_add(&p->taken, 1)) < all; atomic_fetch_add(&p->done, 1))
            do_block(t, s, i / blocks, i / blocks, thread, i % blocks / splits, i % splits, i % splits + 1);
        for (int glance = 0; atomic_load(&p->done) < all;)
            if (glance < GLANCES) glance++;
            else sched_yield();
    }
}

/* Images through all steps, in as many rooms as there are threads; 0, or -1 where memory is short. */
EXPORT int lissom_images(const Step *steps, ptrdiff_t count, float *rooms, ptrdiff_t room, char *seen, ptrdiff_t size,
                         const Outside *x, const Outside *y, ptrdiff_t images, int kernel, int threads) {
    Task t = {.steps = steps, .end = steps + count, .kernel = lissom_kernel(kernel), .rooms = rooms, .seen = seen,
              .room = room, .size = size, .x = x, .y = y, .images = images};
    if (images >= threads) {
        lissom_each_beside_torch(each_image, &t, images, 1, threads);
        return 0;
    }
    t.progress = calloc((size_t)count, sizeof(Progress));
    if (!t.progress) return -1;
    lissom_each_beside_torch(each_block, &t, threads, 1, threads);
    free(t.progress);
    return 0;
}
