/* What the threads that run the operations of a pass share. */
#ifndef LISSOM_TASK_H
#define LISSOM_TASK_H

#include "linear.h"
#include "pool.h"

typedef enum { EMBED, ROTARY, MAKE, LINEAR, ATTENTION, BOUND, EXPERTS, WHOLE, PICK } Code;

typedef struct {
    ptrdiff_t code;
    const void *what;
} Operation;

/* Consecutive tokens of a sequence, the first in row `row` and at position `place`. */
typedef struct {
    ptrdiff_t row, count, place;
    const int32_t *pages;
} Part;

typedef struct {
    ptrdiff_t rows, parts, picks;
    const int32_t *tokens, *places, *types, *slots, *picked; /* types of tokens, or null; slots: page times PAGE, and where in it */
    const Part *part;
} Pass;

typedef struct {
    Pass *pass;
    const void *what;
    const Operation *first, *last; /* those that run one after the other */
    const Kernel *kernel;
    const Queries *queries;
    ptrdiff_t pieces; /* of queries, */
    ptrdiff_t most;   /* tokens that one of them has at most */
    float *scratch;
    ptrdiff_t room; /* floats of scratch for each thread */
    int threads;
    int apart;        /* each sequence is one piece, so that nothing waits for the keys of others */
    ptrdiff_t shares; /* of a sequence whose tokens see it whole, or of a pass */
} Task;

/* heads.c. What attends, piece by piece, to be freed; it says in the task what room it takes. Null where memory is short. */
Queries *lissom_queries(const Operation *operations, const Operation *end, Task *task);
void lissom_attend(const Attention *a, Task *task, Machine on);
/* Items are shares of the tokens of a head of a sequence. */
void lissom_attend_whole(void *task, ptrdiff_t first, ptrdiff_t last, int thread);

#endif
