/* Layers that read the same input: it is made and rounded once, and multiplied with the matrices of all. */
#ifndef LISSOM_LINEAR_H
#define LISSOM_LINEAR_H

#include "pool.h"
#include "step.h"

typedef struct {
    ptrdiff_t inputs, group, wide; /* of a matrix: inputs, those that share a scale, and these with their padding */
    int levels;                    /* 0: a scale for each block, 127 levels; else one for each row, so many levels */
} Layout;

/* One way in which inputs become integers, and where they are put: room for all rows of a pass. */
typedef struct {
    Layout layout;
    ptrdiff_t block, width; /* as those of the panels that read them */
    int8_t *x;
    float *xs;
    int32_t *xt;
    ptrdiff_t room, blocks; /* of a row at most: rows `first` and those behind it begin at first times so many */
} Rounding;

typedef struct {
    const Panels *panels; /* or null, and then */
    const Dense *dense;
    ptrdiff_t rounding; /* which one panels read */
    Columns to;
    int add; /* to what is there */
} Product;

typedef struct {
    Source source;
    const Rounding *roundings;
    const Product *products;
    ptrdiff_t rounding_count, product_count;
    float *made; /* room for the inputs of all rows if a product reads them as floats, else for one row of each thread */
    uint16_t *narrow; /* room for those of all rows as bfloat16 if a product reads them so, or null */
    ptrdiff_t room;   /* numbers of such a row at most */
    int there; /* the inputs of all rows lie there already, and only dense products read them */
} Linear;

/* What the work runs on; `each` is one of pool.h. */
typedef struct {
    const Kernel *kernel;
    void (*each)(Work work, void *given, ptrdiff_t count, ptrdiff_t chunk, int threads);
    int threads;
} Machine;

/* `count` rows; row m is made of row picked[m], where that is not null. */
void lissom_multiply(const Linear *, ptrdiff_t count, const int32_t *picked, Machine);

/* How many weights the layers have together. */
ptrdiff_t lissom_weights(const Linear *);

/* Rows `first` up to `last` by this thread alone. */
void lissom_multiply_rows(const Linear *, const Kernel *, ptrdiff_t first, ptrdiff_t last, int thread);

/* One row of a compressed matrix. */
void lissom_panel_row(const Panels *, const Layout *, ptrdiff_t output, float *to);

/* How many items a thread should take at once: work enough that taking them costs nothing, and several turns for each
   thread, so that one that was interrupted does not keep the others waiting. What is little work is left to one thread. */
ptrdiff_t lissom_chunk(ptrdiff_t items, ptrdiff_t work_of_one, int threads);

#endif
