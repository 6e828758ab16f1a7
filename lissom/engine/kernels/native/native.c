/* Which kernels there are, and which of them this processor can run. */
#include "native.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const Kernel *const KERNELS[] = {
    &lissom_portable,
#if defined(__x86_64__)
    &lissom_avx2, &lissom_avxvnni, &lissom_avx512, &lissom_avx512bf16,
#endif
};

const Kernel *lissom_kernel(int number) { return KERNELS[number]; }

#if defined(__x86_64__)
static int has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

static int runs(int kernel) {
    __builtin_cpu_init();
    if (kernel == 4) return runs(3) && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi2");
    if (kernel == 3)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return kernel == 0 || (avx2 && (kernel == 1 || has_avxvnni()));
}
#else
static int runs(int kernel) { return kernel == 0; }
#endif

/* Whether this processor can run that one of KERNELS; -1 beyond the last. */
EXPORT int lissom_runs(int kernel) {
    if (kernel < 0 || kernel >= (int)(sizeof KERNELS / sizeof *KERNELS)) return -1;
    return runs(kernel);
}

/* Of each block of logits the sum of exp((z - best) by). */
EXPORT void lissom_likely(const float *logits, ptrdiff_t count, ptrdiff_t block, float best, float by, double *to, int kernel) {
    for (ptrdiff_t at = 0; at < count; at += block)
        *to++ = lissom_kernel(kernel)->likely(logits + at, count - at < block ? count - at : block, best, by);
}
