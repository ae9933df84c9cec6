/* Instruction sets: which ones the compiler can produce (HAVE_…), the function attribute that asks for one (TARGET_…),
 * and whether the processor has it (has_…).
 *
 * Code for a set is left out if the compiler is too old for that set. With -DCHARLSTM_OLD_COMPILER every compiler
 * counts as too old for AVX-VNNI, AVX-512 VNNI and AVX-512 BF16; a test uses this macro.
 */
#ifndef CHARLSTM_CPU_H
#define CHARLSTM_CPU_H

#if defined(CHARLSTM_OLD_COMPILER)
#define COMPILER_HAS(gcc, clang) 0
/* Apple numbers its clang differently: version N is based on LLVM N − 4 or later. */
#elif defined(__apple_build_version__)
#define COMPILER_HAS(gcc, clang) (__clang_major__ >= (clang) + 4)
#elif defined(__clang__)
#define COMPILER_HAS(gcc, clang) (__clang_major__ >= (clang))
#else
#define COMPILER_HAS(gcc, clang) (__GNUC__ >= (gcc))
#endif

#define TARGET_PLAIN

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define HAVE_AVX2   1
#define TARGET_AVX2 __attribute__((target("avx2,fma")))

static inline int has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#define HAVE_AVX512 1
#if defined(__clang__)
#define TARGET_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")))
#else /* without the last option GCC uses vectors of 256 bits in loops that it vectorises itself */
#define TARGET_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")))
#endif

static inline int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}

#if COMPILER_HAS(8, 7) /* _mm512_dpbusd_epi32 */
#define HAVE_AVX512_VNNI   1
#define TARGET_AVX512_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))

static inline int has_avx512_vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

#if COMPILER_HAS(10, 9) /* _mm512_dpbf16_ps */
#define HAVE_AVX512_BF16 1
#if defined(__clang__)
#define TARGET_AVX512_BF16 __attribute__((target("avx512bf16,avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")))
#else
#define TARGET_AVX512_BF16                                                                                             \
    __attribute__((target("avx512bf16,avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")))
#endif

static inline int has_avx512_bf16(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#endif

#if COMPILER_HAS(11, 12) /* _mm256_dpbusd_avx_epi32 */
#define HAVE_AVX_VNNI   1
#define TARGET_AVX_VNNI __attribute__((target("avxvnni,avx2,fma")))

static inline int has_avx_vnni(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif
#endif

#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__ARM_FEATURE_DOTPROD)
#define HAVE_NEON_DOTPROD 1
#define TARGET_NEON_DOTPROD
/* clang's header declares vdotq_s32 for the whole file or not at all. */
#elif !defined(__clang__) && COMPILER_HAS(8, 0)
#define HAVE_NEON_DOTPROD   1
#define TARGET_NEON_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

#if defined(HAVE_NEON_DOTPROD)
static inline int has_neon_dotprod(void)
{
#if defined(__ARM_FEATURE_DOTPROD)
    return 1;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
#else
    return 0;
#endif
}
#endif
#endif

static inline int has_plain(void) { return 1; }

/* Tell the processor that this thread waits in a loop. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
