/* AVX-512 with VNNI and products of bfloat16. */
#if defined(__x86_64__)
#define BF16 1
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")))
#define KERNEL lissom_avx512bf16
#include "avx512.c"
#endif
