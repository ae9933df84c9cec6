/* Macros with which the loops of both cores are written once and compiled for each instruction set.
 *
 * A file of loops is included once for each set, after these definitions:
 *
 *     ISA     suffix of every name in it
 *     TARGET  function attribute of the set, from cpu.h
 *
 * The two cores compute e^x by different polynomials, on purpose. The engine's takes 2^x to 1e-8 in vector types; the
 * training kernels' takes e^x to 2e-7 in scalar code that the compiler vectorises. One shared polynomial would change
 * the last bits of every trained model, or the text that a fixed seed generates, and would improve neither speed nor
 * accuracy.
 */
#ifndef CHARLSTM_SIMD_H
#define CHARLSTM_SIMD_H

#define JOIN_AS_GIVEN(a, b) a##_##b
#define JOIN(a, b)          JOIN_AS_GIVEN(a, b)

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define INLINE        ALWAYS_INLINE TARGET

/* For a loop whose iterations are independent, if the compiler cannot prove it. clang warns of a loop
 * that it then cannot vectorise, such as one that calls exp of the C library. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define INDEPENDENT_WITH_CALLS
#else
#define INDEPENDENT            _Pragma("GCC ivdep")
#define INDEPENDENT_WITH_CALLS INDEPENDENT
#endif

#endif
