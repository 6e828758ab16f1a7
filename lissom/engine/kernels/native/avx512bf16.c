/* AVX-512 with VNNI, products of bfloat16, and numbers of 16 bits spread by a mask (VBMI2). */
#if defined(__x86_64__)
#define BF16 1
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx512vbmi2,prfchw,avx2,fma,f16c")))
#define KERNEL lissom_avx512bf16
#include "avx512.c"
#endif
