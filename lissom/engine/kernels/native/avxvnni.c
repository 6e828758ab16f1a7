/* AVX2 with VNNI for vectors of 32 bytes: processors of clients that have no AVX-512. */
#if defined(__x86_64__)
#define VNNI 1
#define TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
#define KERNEL lissom_avxvnni
#include "avx2.c"
#endif
