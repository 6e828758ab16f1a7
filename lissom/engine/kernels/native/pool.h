/* Threads that wait for work. */
#ifndef LISSOM_POOL_H
#define LISSOM_POOL_H

#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

enum { MOST_THREADS = 256 };

typedef void (*Work)(void *given, ptrdiff_t first, ptrdiff_t last, int thread);

/* Does items 0 up to `count`, `chunk` of them at a time, by as many threads: each those that lie behind one another, and then
   the last of others'. The caller works too, and alone where the threads are busy with another caller or could not be
   started. */
EXPORT void lissom_each(Work work, void *given, ptrdiff_t count, ptrdiff_t chunk, int threads);

/* The same on PyTorch's threads, if lissom_share was told of them. */
EXPORT void lissom_each_beside_torch(Work work, void *given, ptrdiff_t count, ptrdiff_t chunk, int threads);

#endif
