/* Threads that share out a task, item by item. */

/* They look for the next task for some microseconds after the last, since the next layer follows at once; then they sleep,
   so that an idle model costs nothing and a busy machine is not kept from its other work. Between PyTorch's own operators,
   whose threads also look for work, its threads are used instead where they are those of GNU's OpenMP. */
#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define REST() _mm_pause()
#elif defined(__aarch64__)
#define REST() __asm__ __volatile__("yield")
#else
#define REST() (void)0
#endif

enum { LOOKING_NS = 50000, GLANCES = 64 };

/* The state of the pool in one number: which task it is, whether there may still be items, and how many threads beside its
   owner are in it. A thread that comes late is not waited for: the owner closes the task and it finds nothing to join. */
static const uint64_t TASK = (uint64_t)1 << 32, OPEN = (uint64_t)1 << 31, INSIDE = ((uint64_t)1 << 31) - 1;
static _Atomic uint64_t state;

/* The chunks that nobody has taken of those that are a thread's: the first, and the one behind the last, in one number. */
typedef struct {
    _Alignas(64) _Atomic uint64_t left;
} Share;

typedef struct {
    Share share[MOST_THREADS];
    Work work;
    void *given;
    ptrdiff_t count, chunk;
    int threads;
    _Atomic int joined; /* threads of OpenMP, which have no numbers of ours */
} Task;

static Task task; /* of our own threads */
static void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* of OpenMP, or null */

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* held by the caller whose task it is */
static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;  /* held around falling asleep and ringing */
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static _Atomic int asleep, owner_asleep;
static int started; /* threads beside the owners'; changed by who holds `owner` */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Each thread gets chunks that lie behind one another, so that what it reads next is what it fetches ahead. */
static void share_out(Task *t) {
    const uint64_t chunks = (uint64_t)((t->count + t->chunk - 1) / t->chunk), threads = (uint64_t)t->threads;
    for (uint64_t n = 0; n < threads; n++)
        atomic_store(&t->share[n].left, chunks * n / threads << 32 | chunks * (n + 1) / threads);
}

/* A chunk of a share, its first one for who owns it and the last one for others; -1 where none is left. */
static ptrdiff_t chunk_of(Share *share, int own) {
    for (uint64_t left = atomic_load(&share->left);;) {
        const uint64_t first = left >> 32, end = left & 0xFFFFFFFF;
        if (first >= end) return -1;
        const uint64_t rest = own ? (first + 1) << 32 | end : first << 32 | (end - 1);
        if (atomic_compare_exchange_weak(&share->left, &left, rest)) return (ptrdiff_t)(own ? first : end - 1);
    }
}

/* Who is done with its own takes of the others'. */
static void take(Task *t, int thread) {
    for (int n = 0; n < t->threads; n++) {
        Share *share = t->share + (thread + n) % t->threads;
        for (ptrdiff_t chunk; (chunk = chunk_of(share, !n)) >= 0;) {
            const ptrdiff_t first = chunk * t->chunk, last = first + t->chunk;
            t->work(t->given, first, last < t->count ? last : t->count, thread);
        }
    }
}

static void take_joining(void *given) {
    Task *t = given;
    take(t, atomic_fetch_add(&t->joined, 1));
}

/* Given GOMP_parallel, its threads are used. */
EXPORT void lissom_share(void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned)) { parallel = gomp_parallel; }

static int is_new(uint64_t now, uint64_t seen) { return now & OPEN && now / TASK != seen; }
static int is_empty(uint64_t now) { return !(now & INSIDE); }

/* Look for a new task for a while; whether there is one. */
static int look(uint64_t seen) {
    for (const uint64_t begun = now_ns(); now_ns() - begun < LOOKING_NS;)
        for (int glance = 0; glance < GLANCES; glance++) {
            if (is_new(atomic_load(&state), seen)) return 1;
            REST();
        }
    return 0;
}

static uint64_t join(uint64_t seen) {
    for (;;) {
        if (!look(seen)) {
            pthread_mutex_lock(&door);
            for (atomic_fetch_add(&asleep, 1); !is_new(atomic_load(&state), seen);) pthread_cond_wait(&bell, &door);
            atomic_fetch_sub(&asleep, 1);
            pthread_mutex_unlock(&door);
        }
        for (uint64_t now = atomic_load(&state); is_new(now, seen);)
            if (atomic_compare_exchange_weak(&state, &now, now + 1)) return now / TASK;
    }
}

static void leave(void) {
    atomic_fetch_sub(&state, 1);
    if (!atomic_load(&owner_asleep)) return;
    pthread_mutex_lock(&door);
    pthread_cond_signal(&finished);
    pthread_mutex_unlock(&door);
}

static void *live(void *number) {
    const int thread = (int)(intptr_t)number;
    for (uint64_t seen = 0;;) {
        seen = join(seen);
        if (thread < task.threads) take(&task, thread);
        leave();
    }
    return NULL;
}

/* A forked child has none of the threads. */
static void forget(void) {
    owner = door = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    bell = finished = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    started = 0;
    atomic_store(&state, 0);
    atomic_store(&asleep, 0);
}

static void start(int wanted) {
    static int registered;
    if (!registered) registered = !pthread_atfork(NULL, NULL, forget);
    for (pthread_t thread; started < wanted; started++) {
        if (pthread_create(&thread, NULL, live, (void *)(intptr_t)(started + 1))) return;
        pthread_detach(thread);
    }
}

static void wait_until_empty(void) {
    for (const uint64_t begun = now_ns(); !is_empty(atomic_load(&state));) {
        REST();
        if (now_ns() - begun < LOOKING_NS) continue;
        pthread_mutex_lock(&door);
        for (atomic_store(&owner_asleep, 1); !is_empty(atomic_load(&state));) pthread_cond_wait(&finished, &door);
        atomic_store(&owner_asleep, 0);
        pthread_mutex_unlock(&door);
    }
}

void lissom_each(Work work, void *given, ptrdiff_t count, ptrdiff_t chunk, int threads) {
    threads = threads > MOST_THREADS ? MOST_THREADS : threads;
    if (threads < 2 || count <= chunk || pthread_mutex_trylock(&owner)) {
        work(given, 0, count, 0);
        return;
    }
    start(threads - 1);
    task.work = work, task.given = given, task.count = count, task.chunk = chunk, task.threads = threads;
    share_out(&task);
    atomic_fetch_add(&state, TASK | OPEN);
    if (atomic_load(&asleep)) {
        pthread_mutex_lock(&door);
        pthread_cond_broadcast(&bell);
        pthread_mutex_unlock(&door);
    }
    take(&task, 0);
    atomic_fetch_and(&state, ~OPEN);
    wait_until_empty();
    pthread_mutex_unlock(&owner);
}

void lissom_each_beside_torch(Work work, void *given, ptrdiff_t count, ptrdiff_t chunk, int threads) {
    threads = threads > MOST_THREADS ? MOST_THREADS : threads;
    if (threads < 2 || count <= chunk || !parallel) {
        lissom_each(work, given, count, chunk, threads);
        return;
    }
    Task shared;
    shared.work = work, shared.given = given, shared.count = count, shared.chunk = chunk, shared.threads = threads;
    atomic_init(&shared.joined, 0);
    share_out(&shared);
    parallel(take_joining, &shared, (unsigned)threads, 0);
}
