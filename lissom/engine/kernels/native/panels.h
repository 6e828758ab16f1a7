/* Panels: a compressed matrix as the kernels read it, and what the kernels are given. */

/* y[m][o] = unit[o] * sum over blocks b of  scale[o][b] * xs[m][b] * ( sum over j in b of  x[m][j] * (c[o][j] - zero[o][b]) )

   x are inputs as integers of 8 bits with a scale xs for each block; c are codes, unsigned bytes once they are unpacked.
   A panel holds LANES outputs. Its codes come in chunks of CHUNK inputs: for each chunk `bits` times 32 inputs' worth of
   bytes, and in them vectors of 64 bytes, each 16 outputs times 4 inputs of them, outputs of the panel's first half before
   those of its second. Where a byte holds several codes, the lowest are those of the first 4 inputs, the next those of the
   next 4, and so on. A chunk of 3 bits is two vectors of the lower 2 bits and then one of the highest bits. A code of 1 bit
   is unpacked to 0 or 2, so that the zero in the middle is whole. */
#ifndef LISSOM_PANELS_H
#define LISSOM_PANELS_H

#include <stddef.h>
#include <stdint.h>

enum { LANES = 32, CHUNK = 32 };

typedef struct {
    ptrdiff_t outputs, width, block; /* real outputs; inputs with all padding; inputs that share a scale */
    int bits, books;                 /* 1 2 3 4 8; tables of a panel's half: 0 (codes are values), 1 (one for each 4
                                        outputs) or 4 (one for each output) */
    int zero;                        /* where zeros is null: the code that stands for 0 */
    const uint8_t *codes;            /* [panel][width / CHUNK][bits * LANES * CHUNK / 8] */
    const uint16_t *scale;           /* half floats, [panel][width / block][LANES] */
    const uint8_t *zeros;            /* [panel][width / block][LANES], or null */
    const uint8_t *book;             /* [panel][2][books][64]: 16 entries for each run of 16 bytes, or null */
    const float *unit, *bias;        /* [panel][LANES]; bias may be null */
} Panels;

typedef struct {
    ptrdiff_t count;   /* rows */
    const int8_t *x;   /* [count][width] */
    const float *xs;   /* [count][width / block] */
    const int32_t *xt; /* the sums of x in each block, [count][width / block] */
    float *y;          /* [count][outputs] */
} Rows;

typedef struct {
    /* All rows times panels `first` up to `last`. */
    void (*multiply)(const Panels *, const Rows *, ptrdiff_t first, ptrdiff_t last);
    /* One block of a row: its largest magnitude as the bits of a float; NaN is larger than all others. */
    uint32_t (*largest)(const float *x, ptrdiff_t count);
    /* One block of finite numbers to integers, padded with zeros to `block`; returns their sum. */
    int32_t (*round)(const float *x, ptrdiff_t count, ptrdiff_t block, float factor, int8_t *q);
} Kernel;

extern const Kernel lissom_portable, lissom_avx2, lissom_avxvnni, lissom_avx512;
extern const Kernel *const lissom_kernels[];

static const float TINY = 1e-36f; /* inputs that are smaller count as 0: the inverse would be infinite */

#endif
