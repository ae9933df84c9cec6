/* The engine's arithmetic for each instruction set, best first: engine_isa.h is included once for each. */
#include "engine_kernels.h"

#include "core.h"
#include "cpu.h"
#include "simd.h"

#include <math.h>
#include <string.h>

/* How bytes are multiplied. */
#define DOT_PLAIN   0
#define DOT_AVX2    1
#define DOT_VNNI256 2
#define DOT_VNNI512 3
#define DOT_NEON    4

#if defined(HAVE_AVX512_VNNI)
#define ISA       avx512_vnni
#define TARGET    TARGET_AVX512_VNNI
#define LANES     16
#define REGISTERS 24
#define DOT       DOT_VNNI512
#include "engine_isa.h"
#endif

#if defined(HAVE_AVX_VNNI)
#define ISA       avx_vnni
#define TARGET    TARGET_AVX_VNNI
#define LANES     8
#define REGISTERS 12
#define DOT       DOT_VNNI256
#include "engine_isa.h"
#endif

#if defined(HAVE_AVX2)
#define ISA       avx2
#define TARGET    TARGET_AVX2
#define LANES     8
#define REGISTERS 12
#define DOT       DOT_AVX2
#include "engine_isa.h"
#endif

#if defined(HAVE_NEON_DOTPROD)
#define ISA       neon_dotprod
#define TARGET    TARGET_NEON_DOTPROD
#define LANES     4
#define REGISTERS 24
#define DOT       DOT_NEON
#include "engine_isa.h"
#endif

#define ISA       plain
#define TARGET    TARGET_PLAIN
#define LANES     4
#define REGISTERS 12
#define DOT       DOT_PLAIN
#include "engine_isa.h"

const instruction_set instruction_sets[] = {
#if defined(HAVE_AVX512_VNNI)
    {"avx512-vnni", has_avx512_vnni, 1, &kernels_avx512_vnni},
#endif
#if defined(HAVE_AVX_VNNI)
    {"avx-vnni", has_avx_vnni, 1, &kernels_avx_vnni},
#endif
#if defined(HAVE_AVX2)
    {"avx2", has_avx2, 1, &kernels_avx2},
#endif
#if defined(HAVE_NEON_DOTPROD)
    {"neon-dotprod", has_neon_dotprod, 1, &kernels_neon_dotprod},
#endif
    {"plain", has_plain, 0, &kernels_plain},
};

const int instruction_set_count = (int)(sizeof instruction_sets / sizeof *instruction_sets);
