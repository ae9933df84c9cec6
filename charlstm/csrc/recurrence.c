/* The training kernels of recurrence.h.
 *
 * The equations are those of charlstm/cells.py. The loops are in recurrence_loops.h, which is compiled for float and
 * for double and for each instruction set; the best set that the processor has is chosen at run time.
 *
 * Letters: B batch, T time, V vocabulary, H hidden, G gates. Arrays are row-major.
 */
#include "recurrence.h"

#include "cpu.h"
#include "simd.h"
#include "threads.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { DEPTH = 256, WIDTH = 512 }; /* of the block of B that a product keeps in the level-2 cache */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* The part of `count` items that `thread` of `threads` computes, in multiples of `grain`. */
static void share(int64_t count, int64_t grain, int64_t thread, int64_t threads, int64_t *from, int64_t *to)
{
    int64_t grains = (count + grain - 1) / grain;
    *from = min64(count, grains * thread / threads * grain);
    *to = min64(count, grains * (thread + 1) / threads * grain);
}

static int64_t gate_count(int64_t cell) { return cell == RNN ? 1 : cell == COUPLED || cell == GRU ? 3 : 4; }

/* e^x in float: 2^n · p(r) with |r| ≤ ln 2 / 2, relative error below 2e-7, in a form that GCC and clang vectorise. */
ALWAYS_INLINE float exp_f32(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* adding 1.5 · 2^23 rounds to an integer */
    float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 0.00139304f;
    p = p * r + 0.00833360f;
    p = p * r + 0.0416664779f;
    p = p * r + 0.166666671f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {((int32_t)n + 127) * (1 << 23)};
    return p * power.value;
}

ALWAYS_INLINE double exp_f64(double x) { return exp(x); }

/* A permutation of the 32-bit numbers in which every input bit affects every output bit (constants of C. Wellons,
 * 2018). */
ALWAYS_INLINE uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* A float rounded to bf16, to the nearest and to even in the middle, as bits 0 to 15: sign, 8 bits of exponent and 7 of
 * the fraction. NaN stays NaN. */
ALWAYS_INLINE uint32_t bf16_bits(float x)
{
    union {
        float value;
        uint32_t bits;
    } number = {x};
    uint32_t rounded = (number.bits + 0x7fffu + (number.bits >> 16 & 1)) >> 16;
    return x == x ? rounded : 0x7fc0u;
}

ALWAYS_INLINE float bf16_round(float x)
{
    union {
        uint32_t bits;
        float value;
    } number = {bf16_bits(x) << 16};
    return number.value;
}

/* The loops for each instruction set: a vector has VB bytes; a tile, whose sums stay in registers, has MR rows
 * and 2 vectors of columns. */
#define ISA    plain
#define TARGET TARGET_PLAIN
#define VB     16
#if defined(__aarch64__)
#define MR 8
#else
#define MR 4
#endif
#include "recurrence_body.h"

#if defined(HAVE_AVX2)
#define ISA    avx2
#define TARGET TARGET_AVX2
#define VB     32
#define MR     6
#include "recurrence_body.h"
#endif

#if defined(HAVE_AVX512)
#define ISA    avx512
#define TARGET TARGET_AVX512
#define VB     64
#define MR     8
#include "recurrence_body.h"
#endif

/* The loops that multiply pairs of bf16 by an instruction; this set has those of AVX-512 in float and in double. */
#if defined(HAVE_AVX512_BF16)
#define ISA       avx512_bf16
#define TARGET    TARGET_AVX512_BF16
#define VB        64
#define MR        8
#define ELEMENT   bf16
#define REAL      float
#define EXP       exp_f32
#define EACH_UNIT INDEPENDENT
#define ROUNDS    1
#define PAIR      2
#define OPERAND   uint32_t
#include "recurrence_loops.h"
#endif

typedef void loop(const void *task, int64_t thread);

enum operation { PRODUCT, PACK_FORWARD, FORWARD, PACK_BACKWARD, BACKWARD, ADD_ROWS, DROP, OPERATIONS };

/* The functions of a loop in float, double and bf16: `isa` multiplies in float and double, `bf16_isa` in bf16. */
#define EACH(base, isa, bf16_isa)                                                                                      \
    {                                                                                                                  \
        base##_float_##isa, base##_double_##isa, base##_bf16_##bf16_isa                                                \
    }
#define UNROUNDED(base, isa)                                                                                           \
    {                                                                                                                  \
        base##_float_##isa, base##_double_##isa, base##_float_##isa                                                    \
    }
#define VARIANT(isa, bf16_isa, vb)                                                                                     \
    {                                                                                                                  \
#bf16_isa, has_##bf16_isa, {2 * (vb) / 4, 2 * (vb) / 8, 2 * (vb) / 4 },                                        \
        {                                                                                                              \
            EACH(product, isa, bf16_isa), EACH(pack_forward, isa, bf16_isa), EACH(forward, isa, bf16_isa),             \
                EACH(pack_backward, isa, bf16_isa), EACH(backward, isa, bf16_isa), UNROUNDED(add_rows, isa),           \
                UNROUNDED(drop, isa)                                                                                   \
        }                                                                                                              \
    }

static const struct {
    const char *name;
    int (*is_present)(void);
    int64_t tile_width[3]; /* columns of a tile, for each element */
    loop *loops[OPERATIONS][3];
} variants[] = {
    VARIANT(plain, plain, 16),
#if defined(HAVE_AVX2)
    VARIANT(avx2, avx2, 32),
#endif
#if defined(HAVE_AVX512)
    VARIANT(avx512, avx512, 64),
#endif
#if defined(HAVE_AVX512_BF16)
    VARIANT(avx512, avx512_bf16, 64),
#endif
};

int recurrence_variants(void)
{
    int count = 1;
    while (count < (int)(sizeof variants / sizeof *variants) && variants[count].is_present()) count++;
    return count;
}

const char *recurrence_variant_name(int variant) { return variants[variant].name; }

int recurrence_has_bf16(int variant)
{
#if defined(HAVE_AVX512_BF16)
    return variants[variant].is_present == has_avx512_bf16;
#else
    return (void)variant, 0;
#endif
}

int64_t recurrence_product_scratch(void) { return DEPTH * (WIDTH + 32); }

int64_t recurrence_scan_scratch(int variant, enum element element, int64_t cell, int64_t B, int64_t H)
{
    int64_t width = variants[variant].tile_width[element], G = gate_count(cell);
    return (H + width - 1) / width * width * G * H + (element == BF16 ? B * G * H : 0);
}

/* A loop that several threads run; each takes the next part that is not taken yet. */
typedef struct {
    loop *loop;
    const void *task;
    atomic_int_fast64_t next;
} shared_loop;

static void take_share(void *argument)
{
    shared_loop *shared = argument;
    shared->loop(shared->task, atomic_fetch_add(&shared->next, 1));
}

static void take_share_in_pool(void *argument, int thread)
{
    (void)thread;
    take_share(argument);
}

/* Run the parts in the library's own pool, which is kept, because creating threads takes longer than most loops. If
 * another thread is using the pool, do nothing. */
static void run_in_own_pool(shared_loop *shared, int threads)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static thread_pool *own;
    static int wanted; /* threads that were requested for `own`; the system may have created fewer */
    if (pthread_mutex_trylock(&mutex)) return;
    if (!pool_is_own(own) || wanted < threads) {
        pool_destroy(own);
        own = pool_create(threads);
        wanted = threads;
    }
    const int most = pool_threads(own);
    pool_run(own, threads < most ? threads : most, take_share_in_pool, shared);
    pthread_mutex_unlock(&mutex);
}

/* Call loop(task, i) once for each i from 0 to threads − 1. The caller computes the parts that no other thread takes.
 */
static void run(enum operation operation, const void *task, int variant, enum element element, int64_t threads,
                gomp_parallel *pool)
{
    shared_loop shared = {variants[variant].loops[operation][element], task, 0};
    if (threads > 1 && pool) pool(take_share, &shared, (unsigned)threads, 0);
    else if (threads > 1) run_in_own_pool(&shared, (int)threads);
    while (atomic_load(&shared.next) < threads) take_share(&shared);
}

void recurrence_product(const product_task *task, int variant, enum element element, gomp_parallel *pool)
{
    run(PRODUCT, task, variant, element, task->threads, pool);
}

void recurrence_forward(const scan_task *task, int variant, enum element element, gomp_parallel *pool)
{
    run(PACK_FORWARD, task, variant, element, task->threads, pool);
    run(FORWARD, task, variant, element, task->threads, pool);
}

void recurrence_backward(const scan_task *task, int variant, enum element element, gomp_parallel *pool)
{
    run(PACK_BACKWARD, task, variant, element, task->threads, pool);
    run(BACKWARD, task, variant, element, task->threads, pool);
    if (task->index) run(ADD_ROWS, task, variant, element, task->threads, pool);
}

void recurrence_drop(const drop_task *task, int variant, enum element element, gomp_parallel *pool)
{
    run(DROP, task, variant, element, task->threads, pool);
}
