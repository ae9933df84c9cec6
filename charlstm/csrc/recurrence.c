/* Training kernels: a layer over a whole sequence, forward and backward, and the matrix products around it.
 *
 * The equations are those of charlstm/cells.py; the loops are in recurrence_body.h, which is compiled for float and double
 * and for each instruction set. The best that the processor has is taken at run time. C11 with the vector types of GCC and
 * clang; no dependency but the C library.
 *
 * Threads: an exported function runs `threads` copies of its loop, each on its own share of the batch (or of the product),
 * and none ever waits for another. They run on the pool whose GOMP_parallel the caller hands over (torch's own: a second
 * pool would fight it for the cores), else on threads made for the call.
 *
 * Letters: B batch, T time, V vocabulary, H hidden, G gates. Arrays are row-major.
 */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum cell { LSTM, PEEPHOLE, COUPLED, GRU, RNN };
enum { MAX_THREADS = 256, DEPTH = 256, WIDTH = 512 }; /* of the block of B that a product keeps in the second cache */

/* C (M, N) = A (M, K) · B (K, N), or C += A · B. Element (i, k) of A is a[i * a_row + k * a_col], B's likewise, C's c[i * c_row + j]. */
struct product {
    const void *a, *b;
    void *c, *scratch; /* charlstm_product_scratch() elements for each thread */
    int64_t M, N, K, a_row, a_col, b_row, b_col, c_row;
    int64_t accumulate, threads;
};

/* One layer over T steps. The backward pass reads what the forward pass left, and overwrites `gates` and `candidate`. */
struct scan {
    int64_t cell, threads, T, B, H;
    const void *source;      /* (V or T·B, G·H) the input's part of the gates: x · weight_ih.T, without bias */
    const int64_t *index;    /* (T, B) the row of `source` for each step, or NULL: the rows come in order */
    const uint8_t *fresh;    /* (T, B) 1: this step begins with the zero state; or NULL: none does */
    const void *weight;      /* (G·H, H) weight_hh */
    const void *bias;        /* (G·H) both biases; GRU (4·H): r, z with both, n with the hidden one, n with the input one */
    const void *peephole;    /* (3, H) or NULL */
    void *h, *c;             /* (T + 1, B, H) the first is given, the others are written; c NULL where the cell has none */
    void *h_begin, *c_begin; /* (T, B, H) what each step begins with: the same memory as h and c where `fresh` is NULL */
    void *gates;             /* (T, B, G·H) squashed; backward turns them into the gradient before squashing */
    void *candidate;         /* (T, B, H) GRU: weight_hn · h + b_hn; backward: gradient of the n block's input part */
    void *packed;            /* charlstm_scan_scratch() elements */
    const void *d_output;    /* (T, B, H) gradient of h[1:] */
    void *d_h, *d_c;         /* (B, H) in: gradient of the last state; out: of the first */
    void *d_bias;            /* (threads, size of bias) zeroed by the caller; its sum over threads is the gradient */
    void *d_peephole;        /* (threads, 3, H) likewise */
    void *d_source;          /* (V, G·H) likewise zeroed; only where `index` is given */
};

/* y = x with each number dropped by chance, the others scaled up. The same keys drop the same places, forward and backward. */
struct drop {
    const void *x;
    void *y;
    int64_t n, threads;
    double share; /* of the numbers that are dropped */
    uint32_t key, second_key;
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* What `thread` of `threads` does of `count` things, in multiples of `grain`. */
static void share(int64_t count, int64_t grain, int64_t thread, int64_t threads, int64_t *from, int64_t *to) {
    int64_t grains = (count + grain - 1) / grain;
    *from = min64(count, grains * thread / threads * grain);
    *to = min64(count, grains * (thread + 1) / threads * grain);
}

static int64_t gate_count(int64_t cell) { return cell == RNN ? 1 : cell == COUPLED || cell == GRU ? 3 : 4; }

/* e^x in float: 2^n · p(r) with |r| ≤ ln 2 / 2, relative error below 2e-7, in a form that every compiler vectorises. */
static inline __attribute__((always_inline)) float exp_f32(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* 1.5 · 2^23 rounds to a whole number */
    float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 0.00139304f;
    p = p * r + 0.00833360f;
    p = p * r + 0.0416664779f;
    p = p * r + 0.166666671f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) * (1 << 23)};
    return p * power.value;
}

static inline __attribute__((always_inline)) double exp_f64(double x) { return exp(x); }

/* The units of a layer do not depend on each other; a compiler cannot know that the gates of one lie H apart. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* A permutation of 32 bits in which every bit of the input moves every bit of the output (constants of C. Wellons, 2018). */
static inline __attribute__((always_inline)) uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

#define GLUE3(a, b, c) a##_##b##_##c
#define GLUE(a, b, c) GLUE3(a, b, c)
#define NAME(base) GLUE(base, REAL, ISA)

/* MR rows by 2 vectors of VB bytes is the tile whose sums stay in registers. */
#define ISA plain
#define VB 16
#if defined(__aarch64__)
#define MR 8
#else
#define MR 4
#endif
#include "recurrence_body.h"

#if defined(__x86_64__)
#define ISA avx2
#define VB 32
#define MR 6
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "recurrence_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define ISA avx512
#define VB 64
#define MR 8
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,prefer-vector-width=512")
#endif
#include "recurrence_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* Changes whenever a struct above does: whoever loads this library compares before calling anything else in it. */
int charlstm_abi(void) { return 2; }

typedef void loop(const void *task, int64_t thread);
typedef void gomp_parallel(void (*)(void *), void *, unsigned, unsigned);

enum operation { PRODUCT, PACK_FORWARD, FORWARD, PACK_BACKWARD, BACKWARD, ADD_ROWS, DROP, OPERATIONS };

struct variant {
    const char *name;
    int64_t tile_width[2]; /* columns of a tile, for float and double */
    loop *loops[OPERATIONS][2];
};

#define PAIR(base, isa) {base##_float_##isa, base##_double_##isa}
#define VARIANT(isa, vb)                                                                                              \
    {#isa, {2 * (vb) / 4, 2 * (vb) / 8}, {PAIR(product, isa), PAIR(pack_forward, isa), PAIR(forward, isa),            \
                                          PAIR(pack_backward, isa), PAIR(backward, isa), PAIR(add_rows, isa),         \
                                          PAIR(drop, isa)}}

static const struct variant variants[] = {
    VARIANT(plain, 16),
#if defined(__x86_64__)
    VARIANT(avx2, 32),
    VARIANT(avx512, 64),
#endif
};

/* How many instruction sets this library was built for and this processor can run; they count from the plainest. */
int charlstm_variants(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    return wide ? 3 : 2;
#else
    return 1;
#endif
}

const char *charlstm_variant_name(int variant) { return variants[variant].name; }

/* Elements of scratch for each thread of a product. */
int64_t charlstm_product_scratch(void) { return DEPTH * (WIDTH + 32); }

/* Elements of scratch for a scan: the recurrent matrix in tiles, the last of them filled up with zeros. */
int64_t charlstm_scan_scratch(int variant, int is_double, int64_t cell, int64_t H) {
    int64_t width = variants[variant].tile_width[is_double];
    return (H + width - 1) / width * width * gate_count(cell) * H;
}

struct crew {
    loop *loop;
    const void *task;
    atomic_int_fast64_t next;
};

static void work(void *argument) {
    struct crew *crew = argument;
    crew->loop(crew->task, atomic_fetch_add(&crew->next, 1));
}

static void *work_in_thread(void *argument) {
    work(argument);
    return NULL;
}

/* loop(task, 0 … threads − 1), each once. What a pool or the system does not give a thread for, the caller does itself. */
static void run(loop *loop, const void *task, int64_t threads, gomp_parallel *pool) {
    struct crew crew = {loop, task, 0};
    if (threads > 1 && pool) {
        pool(work, &crew, (unsigned)threads, 0);
    } else if (threads > 1) {
        pthread_t made[MAX_THREADS];
        int64_t count = 0;
        while (count < threads - 1 && pthread_create(&made[count], NULL, work_in_thread, &crew) == 0) count++;
        work(&crew);
        for (int64_t k = 0; k < count; k++) pthread_join(made[k], NULL);
    }
    while (atomic_load(&crew.next) < threads) work(&crew);
}

void charlstm_product(const struct product *task, int variant, int is_double, gomp_parallel *pool) {
    run(variants[variant].loops[PRODUCT][is_double], task, task->threads, pool);
}

void charlstm_forward(const struct scan *task, int variant, int is_double, gomp_parallel *pool) {
    run(variants[variant].loops[PACK_FORWARD][is_double], task, task->threads, pool);
    run(variants[variant].loops[FORWARD][is_double], task, task->threads, pool);
}

void charlstm_backward(const struct scan *task, int variant, int is_double, gomp_parallel *pool) {
    run(variants[variant].loops[PACK_BACKWARD][is_double], task, task->threads, pool);
    run(variants[variant].loops[BACKWARD][is_double], task, task->threads, pool);
    if (task->index) run(variants[variant].loops[ADD_ROWS][is_double], task, task->threads, pool);
}

void charlstm_drop(const struct drop *task, int variant, int is_double, gomp_parallel *pool) {
    run(variants[variant].loops[DROP][is_double], task, task->threads, pool);
}
