/* What a network does for an image, as the kernels are given it. */

/* An image's maps lie in a room of its own, as floats with the channels innermost and filled up with zeros to whole vectors.
   With a map goes the largest magnitude of each of its rows, as bits: one vector for each part of the channels that was made
   apart, of which the largest counts. Offsets count floats from the beginning of the room. */
#ifndef LISSOM_IMAGES_H
#define LISSOM_IMAGES_H

#include <stddef.h>
#include <stdint.h>

enum { VECTOR = 16, ENTRY = 4, OVER = 64 }; /* channels; bytes that meet a weight; what may be read beyond what is seen */

typedef enum { ENTER, CONVOLVE, POOL, POINT, COPY, LEAVE } Deed;
/* As integers; as floats; the same, each channel with its own weights. */
typedef enum { INTEGERS, FLOATS, DEEP } Inputs;

typedef struct {
    ptrdiff_t at, most;             /* the floats, and the magnitudes: [high][splits][VECTOR] */
    ptrdiff_t high, wide, channels; /* with the channels that fill it up */
    ptrdiff_t splits;               /* parts of the channels that are made apart */
} Map;

/* Entries of a patch that lie side by side: the first is so many bytes behind the patch's corner. */
typedef struct {
    ptrdiff_t from, count;
} Stretch;

/* y = after(before(f(x)) + other): what is done to one map, and to the output of that in the same pass. */
typedef struct {
    Map from, to;
    ptrdiff_t other;     /* the map that is added, or -1 */
    int before, after;   /* a Gate, or NONE */
    int deed, inputs;    /* a Deed; of convolutions, Inputs */
    int levels, whole;   /* of integers; whether an image has one scale */
    int offset, pairs;   /* that makes integers unsigned; how many sums of two of their products then fit in 16 bits */
    int mean, adaptive;  /* of pools: else the largest; windows share an image out */
    int inside;          /* the mean of what is inside of the image only */
    int output;          /* the number of one that is left */
    ptrdiff_t rows;      /* output rows of a block */
    ptrdiff_t stride[2], pad[2], reach[2]; /* down and to the right; above and to the left; what a patch spans */
    ptrdiff_t groups, group; /* of channels that only see their own, and bytes from one to the next in what is seen */
    ptrdiff_t parts, runs, entries; /* of a patch: those that have a scale each, stretches of one, entries of all */
    const Stretch *stretches;       /* [parts][runs] */
    const void *weights; /* [vector][entries][64 bytes], vectors of a pair entry by entry: VECTOR quartets, or floats */
    const int32_t *sums; /* [parts][channels], of the weights as integers */
    const float *scale;  /* [parts][channels] */
    const float *unit, *bias;    /* [channels]; of a point, x times unit plus bias, or null */
    ptrdiff_t channel, channels; /* that what is copied begins at; that are no padding */
} Step;

/* Images outside of the program, in floats: of the first one, and from each to the next image, channel, row and column. */
typedef struct {
    float *at;
    ptrdiff_t image, channel, row, column;
} Outside;

#endif
