/* charlstm's inference engine. What it promises stands in engine.h; the arithmetic of each instruction set in
 * engine_isa.h.
 *
 * The time of one step is the time to read the weights once, so everything here serves that: weights lie in the order
 * in which they are read, in 8 bits if the caller allows; the first layer's input product, which can only be one of V
 * values, is a table; the work of a layer is cut over the threads by blocks of units, and a thread computes all gates
 * of its units, so that there is one meeting of the threads a layer and no other traffic.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates; a group is 16 rows, a block is what one product call covers:
 * the G gates of 16 units, or up to 64 rows of the projection.
 */
#define _GNU_SOURCE
#include "engine.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define GROUP 16             /* rows to a group: a register of AVX-512 */
#define Z_STRIDE (4 * GROUP) /* sums of one block and text */
#define MOST_TEXTS 6         /* texts to a tile: with 4 gates, 24 sums in registers */
#define BATCH_TILE 24        /* texts whose sums are kept at once: 6 kB of stack */
#define MOST_LAYERS 64
#define MOST_THREADS 64
#define TABLE_BYTES (8 << 20) /* a larger first-layer table would cost more memory and start than it saves time */
#define SLICE_SECONDS 1e-3       /* of a job, between two choices of how many threads do it */
#define APART_SLICE_SECONDS 8e-3 /* where they do not meet in between, and so do not wait for one that lost its core */
#define WORTH_BYTES (96 << 10) /* of weights, read by each thread: below, its meetings cost more than it saves */
#define SPINS 4000             /* of some 20 ns each, before an idle thread sleeps: a caller in Python is back sooner */
#define MEETING_SPINS 500      /* before a thread that waits for another lets go of its core */

/* ---- instruction sets, best first ---- */

typedef struct {
    void (*product32)(const float *w, const float *x, size_t x_stride, int K, float *z, int texts, int R);
    void (*product8)(const int8_t *w, const float *scale, const int32_t *offset, const uint8_t *x, size_t x_stride,
                     int K, float *z, int texts, int R);
    void (*cells)(int cell, int texts, const float *z, const float *peephole, const float *old, float *c, float *h,
                  uint8_t *q, size_t stride);
    float (*largest)(const float *logits, int n);
    double (*mass)(const float *logits, int n, float largest);
    double (*softmax)(const float *logits, int n, float largest, double temperature, double *weights);
} kernels;

#define DOT_PLAIN 0
#define DOT_AVX2 1
#define DOT_VNNI256 2
#define DOT_VNNI512 3
#define DOT_NEON 4

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define LANES 16
#define REGISTERS 24
#define DOT DOT_VNNI512
#include "engine_isa.h"

#define ISA avxvnni
#define TARGET __attribute__((target("avxvnni,avx2,fma")))
#define LANES 8
#define REGISTERS 12
#define DOT DOT_VNNI256
#include "engine_isa.h"

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define REGISTERS 12
#define DOT DOT_AVX2
#include "engine_isa.h"

static int avx2_present(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static int avxvnni_present(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    return avx2_present() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

static int avx512_present(void)
{
    return avx2_present() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(__aarch64__) && (defined(__ARM_FEATURE_DOTPROD) || !defined(__clang__)) /* clang has no such TARGET */
#define HAVE_DOTPROD
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#define ISA neon
#if defined(__ARM_FEATURE_DOTPROD)
#define TARGET
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define LANES 4
#define REGISTERS 24
#define DOT DOT_NEON
#include "engine_isa.h"

static int neon_present(void)
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

#define ISA plain
#define TARGET
#define LANES 4
#define REGISTERS 12
#define DOT DOT_PLAIN
#include "engine_isa.h"

static int always_present(void) { return 1; }

static const struct {
    const char *name;
    int (*present)(void);
    int has_int8;
    const kernels *kernels;
} isas[] = {
#if defined(__x86_64__)
    {"avx512-vnni", avx512_present, 1, &kernels_avx512},
    {"avx-vnni", avxvnni_present, 1, &kernels_avxvnni},
    {"avx2", avx2_present, 1, &kernels_avx2},
#endif
#if defined(HAVE_DOTPROD)
    {"neon-dotprod", neon_present, 1, &kernels_neon},
#endif
    {"plain", always_present, 0, &kernels_plain},
};

#define ISAS ((int)(sizeof isas / sizeof *isas))

int engine_abi(void) { return ENGINE_ABI; }
const char *engine_isa_name(int isa) { return isa >= 0 && isa < ISAS ? isas[isa].name : NULL; }
int engine_isa_present(int isa) { return isa >= 0 && isa < ISAS && isas[isa].present(); }
int engine_isa_has_int8(int isa) { return isa >= 0 && isa < ISAS && isas[isa].has_int8; }

/* ---- the handle ---- */

/* A matrix in blocks of R groups of rows: fp32 [block][R][K][16], or int8 [block][R][K/4][16][4] with a scale a row. */
typedef struct {
    void *w;
    float *scale;    /* of a row, times 1/127 for the activation's; int8 only */
    int32_t *offset; /* 128·Σw of a row: what the activations' offset adds to its sum; int8 only */
    int blocks, K, R, last_R;
} matrix;

typedef struct {
    matrix input, hidden; /* input.w is NULL where the table stands for it */
    float *bias;          /* [block][Z_STRIDE] */
    float *peephole;      /* [block][3][16] */
    float *h[2], *c;      /* (batch, width): h in turn old and new */
    uint8_t *q[2];        /* h in 8 bits */
} layer;

typedef struct {
    enum { READ, SCORE, GENERATE } kind;
    int batch, length, threads;
    int begin, end; /* the slice of `length` steps that the threads are at */
    const int32_t *ids;
    float *logits;
    double *nats;
    engine_rule rule;
    int filters; /* whether the rule leaves symbols out by how likely they are */
    uint64_t seed, position;
    const uint64_t *streams;
    int32_t *symbols;
} job;

/* A symbol that may still be drawn. */
typedef struct {
    double key; /* what it is ranked by */
    double weight;
    int32_t symbol;
} candidate;

struct engine {
    void *memory; /* what calloc gave; the handle begins at its first cache line */
    engine_options options;
    const kernels *kernels;
    int gates, states; /* of the cell */
    int width, padded; /* H and V, rounded up to groups */
    size_t step_bytes; /* of weights that one step reads */
    float *embedding;  /* (V, E) where there is no table */
    float *table;      /* [V][block][Z_STRIDE]: the first layer's input product and bias for each symbol */
    matrix projection;
    float *projection_bias; /* (padded), −∞ beyond V: no such symbol is ever drawn */
    float *logits;          /* (batch, padded) */
    float *adjusted;        /* (threads, padded): logits with what is not allowed at −∞, and penalised */
    candidate *candidates;  /* (threads, padded) */
    uint8_t *phases;        /* (batch): the state of each text's automaton */
    double *weights;        /* (batch or threads, padded): softmax of a text's logits, or each thread's own of one text's */
    layer layers[MOST_LAYERS];

    job job;
    atomic_int not_finite; /* a text met logits that are no numbers */
    struct pace {
        double step, again;
    } pace[13][7]; /* [log2 batch][log2 threads]: see choose_threads */
    pid_t process; /* threads do not survive a fork */
    int workers;
    pthread_t worker[MOST_THREADS];
    struct seat {
        engine *engine;
        int index;
    } seat[MOST_THREADS];
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    _Alignas(64) _Atomic uint64_t ticket; /* number of the job × 256 + its threads; UINT64_MAX: go home */
    _Alignas(64) atomic_int sleepers;
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int meeting;
    _Alignas(64) atomic_int claimed; /* texts of the slice that a thread has taken */
};

/* Where a row of a block comes from. The cells' slots hold gates in the order of the z that engine_isa.h reads: torch's
 * own, but for the GRU, whose n has two sums: n, r, z from the input, then r, z, n from the hidden state one slot on. */
static const struct {
    int gates, states, input[4], hidden[4];
} cells[] = {
    [ENGINE_LSTM] = {4, 2, {0, 1, 2, 3}, {0, 1, 2, 3}},
    [ENGINE_PEEPHOLE] = {4, 2, {0, 1, 2, 3}, {0, 1, 2, 3}},
    [ENGINE_COUPLED] = {3, 2, {0, 1, 2}, {0, 1, 2}},
    [ENGINE_GRU] = {3, 1, {2, 0, 1}, {0, 1, 2}},
    [ENGINE_RNN] = {1, 1, {0}, {0}},
};

/* ---- making it: sizes first, then the same walk again with memory under it ---- */

typedef struct {
    char *base;
    uint64_t used;
} arena;

static void *take(arena *a, uint64_t bytes)
{
    char *at = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 63) / 64 * 64;
    return at;
}

static void lay_matrix(arena *a, matrix *m, int blocks, int K, int R, int last_R, int int8)
{
    *m = (matrix){.blocks = blocks, .K = K, .R = R, .last_R = last_R};
    const uint64_t rows = ((uint64_t)(blocks - 1) * R + last_R) * GROUP;
    m->w = take(a, rows * (uint64_t)(int8 ? (K + 3) / 4 * 4 : 4 * K));
    if (int8) m->scale = take(a, rows * 4), m->offset = take(a, rows * 4);
}

/* Bytes from one block to the next. */
static size_t block_bytes(const matrix *m)
{
    return (size_t)m->R * GROUP * (m->scale ? (size_t)(m->K + 3) / 4 * 4 : (size_t)m->K * 4);
}

static void lay(arena *a, engine *e)
{
    const engine_options *o = &e->options;
    const int blocks = e->width / GROUP, groups = e->padded / GROUP, G = e->gates;
    const uint64_t table = (uint64_t)o->vocabulary * blocks * Z_STRIDE * 4, lanes = (uint64_t)o->batch * e->width;
    const int has_table = table <= TABLE_BYTES;
    e->table = has_table ? take(a, table) : NULL;
    e->embedding = has_table ? NULL : take(a, (uint64_t)o->vocabulary * o->embedding * 4);
    for (int l = 0; l < o->layers; l++) {
        layer *y = &e->layers[l];
        if (l > 0) lay_matrix(a, &y->input, blocks, o->hidden, G, G, o->int8);
        else if (!has_table) lay_matrix(a, &y->input, blocks, o->embedding, G, G, 0);
        lay_matrix(a, &y->hidden, blocks, o->hidden, G, G, o->int8);
        y->bias = take(a, (uint64_t)e->width * 4 * 4);
        y->peephole = take(a, (uint64_t)e->width * 3 * 4);
        for (int i = 0; i < 2; i++) {
            y->h[i] = take(a, lanes * 4);
            y->q[i] = o->int8 ? take(a, lanes) : NULL;
        }
        y->c = take(a, lanes * 4);
    }
    const int tiles = (groups + 3) / 4, R = (groups + tiles - 1) / tiles, used = (groups + R - 1) / R;
    lay_matrix(a, &e->projection, used, o->hidden, R, groups - (used - 1) * R, o->int8);
    e->projection_bias = take(a, (uint64_t)e->padded * 4);
    e->logits = take(a, (uint64_t)o->batch * e->padded * 4);
    const int threads = o->threads < MOST_THREADS ? o->threads : MOST_THREADS;
    e->adjusted = take(a, (uint64_t)threads * e->padded * 4);
    e->candidates = take(a, (uint64_t)threads * e->padded * sizeof(candidate));
    e->phases = take(a, (uint64_t)o->batch);
    e->weights = take(a, (uint64_t)(o->batch > threads ? o->batch : threads) * e->padded * 8);
}

/* Copy `count` ≤ 16 rows, (count, K) in memory, into slot r of a block. */
static void pack(const matrix *m, int block, int r, const float *rows, int count)
{
    char *w = (char *)m->w + block * block_bytes(m) + (size_t)r * (block_bytes(m) / (size_t)m->R);
    for (int j = 0; j < count; j++) {
        const float *row = rows + (size_t)j * m->K;
        if (!m->scale) {
            for (int k = 0; k < m->K; k++) ((float *)w)[(size_t)k * GROUP + j] = row[k];
            continue;
        }
        float largest = 0;
        for (int k = 0; k < m->K; k++) largest = fabsf(row[k]) > largest ? fabsf(row[k]) : largest;
        const float inverse = largest > 0 ? 127 / largest : 0;
        int32_t sum = 0;
        for (int k = 0; k < m->K; k++) {
            const int8_t rounded = (int8_t)lrintf(row[k] * inverse);
            ((int8_t *)w)[(size_t)(k / 4) * 4 * GROUP + 4 * j + k % 4] = rounded;
            sum += rounded;
        }
        const size_t at = ((size_t)block * m->R + r) * GROUP + j;
        m->scale[at] = largest / (127 * 127.0f);
        m->offset[at] = 128 * sum;
    }
}

static void pack_gates(const engine *e, const matrix *m, const float *weight, const int order[4])
{
    const int H = e->options.hidden;
    for (int block = 0; block < m->blocks; block++)
        for (int r = 0; r < e->gates; r++) {
            const int unit = block * GROUP, count = H - unit < GROUP ? H - unit : GROUP;
            pack(m, block, r, weight + ((size_t)order[r] * H + unit) * m->K, count);
        }
}

/* The bias of every unit and slot, [block][slot][lane]. */
static void pack_bias(const engine *e, float *bias, const float *input, const float *hidden)
{
    const int H = e->options.hidden, gru = e->options.cell == ENGINE_GRU;
    for (int unit = 0; unit < H; unit++)
        for (int r = 0; r < e->gates; r++) {
            float *z = bias + (size_t)(unit / GROUP) * Z_STRIDE + unit % GROUP;
            z[r * GROUP] += input[cells[e->options.cell].input[r] * H + unit];
            z[(r + gru) * GROUP] += hidden[cells[e->options.cell].hidden[r] * H + unit];
        }
}

/* The first layer's bias and input product for every symbol. Made with the product itself, from a packed matrix that
 * lives only here. */
static int make_table(engine *e, const float *embedding, const float *weight)
{
    const engine_options *o = &e->options;
    const int blocks = e->width / GROUP;
    matrix m;
    arena a = {0};
    lay_matrix(&a, &m, blocks, o->embedding, e->gates, e->gates, 0);
    if (posix_memalign((void **)&a.base, 64, a.used)) return ENGINE_NO_MEMORY;
    memset(a.base, 0, a.used);
    a.used = 0;
    lay_matrix(&a, &m, blocks, o->embedding, e->gates, e->gates, 0);
    pack_gates(e, &m, weight, cells[o->cell].input);
    for (int id = 0; id < o->vocabulary; id++)
        for (int block = 0; block < blocks; block++) {
            float *z = e->table + ((size_t)id * blocks + block) * Z_STRIDE;
            memcpy(z, e->layers[0].bias + (size_t)block * Z_STRIDE, Z_STRIDE * 4);
            e->kernels->product32((float *)((char *)m.w + block * block_bytes(&m)),
                                  embedding + (size_t)id * o->embedding, 0, m.K, z, 1, m.R);
        }
    free(a.base);
    return ENGINE_OK;
}

static int fill(engine *e, const float *const *weights)
{
    const engine_options *o = &e->options;
    const int V = o->vocabulary, H = o->hidden;
    const float *embedding = *weights++;
    if (e->embedding) memcpy(e->embedding, embedding, (size_t)V * o->embedding * 4);
    for (int l = 0; l < o->layers; l++) {
        layer *y = &e->layers[l];
        const float *input = *weights++, *hidden = *weights++, *input_bias = *weights++, *hidden_bias = *weights++;
        if (y->input.w) pack_gates(e, &y->input, input, cells[o->cell].input);
        pack_gates(e, &y->hidden, hidden, cells[o->cell].hidden);
        pack_bias(e, y->bias, input_bias, hidden_bias);
        if (o->cell == ENGINE_PEEPHOLE) {
            const float *peephole = *weights++;
            for (int r = 0; r < 3; r++)
                for (int unit = 0; unit < H; unit++)
                    y->peephole[((size_t)(unit / GROUP) * 3 + r) * GROUP + unit % GROUP] =
                        peephole[(size_t)r * H + unit];
        }
        if (l == 0 && e->table && make_table(e, embedding, input)) return ENGINE_NO_MEMORY;
    }
    const float *projection = *weights++, *bias = *weights++;
    for (int group = 0; group < e->padded / GROUP; group++) {
        const int row = group * GROUP, count = V - row < GROUP ? V - row : GROUP, R = e->projection.R;
        pack(&e->projection, group / R, group % R, projection + (size_t)row * H, count);
    }
    for (int row = 0; row < e->padded; row++) e->projection_bias[row] = row < V ? bias[row] : -INFINITY;
    return ENGINE_OK;
}

static void *work_for_ever(void *seat);

static int in_range(int value, int low, int high) { return value >= low && value <= high; }

engine *engine_create(const engine_options *o, const float *const *weights, int *error)
{
    *error = ENGINE_BAD_ARGUMENT;
    if (!in_range(o->cell, ENGINE_LSTM, ENGINE_RNN) || !in_range(o->vocabulary, 1, 1114112) ||
        !in_range(o->embedding, 1, 65536) || !in_range(o->hidden, 1, 65536) || !in_range(o->layers, 1, MOST_LAYERS) ||
        !in_range(o->int8, 0, 1) || !in_range(o->batch, 1, 4096) || o->threads < 1 || o->isa < -1 || o->isa >= ISAS ||
        !in_range(o->boundary, -1, o->vocabulary - 1))
        return NULL;
    engine plan = {.options = *o};
    int isa = o->isa;
    if (isa < 0)
        while (!isas[++isa].present()) {}
    if (!isas[isa].present()) return NULL;
    plan.options.isa = isa;
    plan.kernels = isas[isa].kernels;
    plan.gates = cells[o->cell].gates;
    plan.states = cells[o->cell].states;
    plan.width = (o->hidden + GROUP - 1) / GROUP * GROUP;
    plan.padded = (o->vocabulary + GROUP - 1) / GROUP * GROUP;
    arena a = {0};
    take(&a, sizeof plan);
    lay(&a, &plan);
    *error = ENGINE_NO_MEMORY;
    if (a.used > SIZE_MAX / 2) return NULL;
    plan.memory = calloc(1, (size_t)a.used + 64); /* pages become real when touched: a large batch's may never be */
    if (!plan.memory) return NULL;
    a = (arena){.base = (char *)(((uintptr_t)plan.memory + 63) / 64 * 64)};
    engine *e = take(&a, sizeof plan);
    *e = plan;
    lay(&a, e);
    if (fill(e, weights)) {
        free(e->memory);
        return NULL;
    }
    e->step_bytes = e->projection.blocks * block_bytes(&e->projection);
    for (int l = 0; l < o->layers; l++)
        e->step_bytes += e->layers[l].hidden.blocks * block_bytes(&e->layers[l].hidden) +
                         e->layers[l].input.blocks * block_bytes(&e->layers[l].input);
    e->process = getpid();
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->wake, NULL);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the caller's threads */
    const int threads = engine_threads(e, o->batch);
    while (e->workers + 1 < threads) { /* fewer threads than asked for are no error */
        struct seat *seat = &e->seat[e->workers];
        *seat = (struct seat){e, e->workers + 1};
        if (pthread_create(&e->worker[e->workers], NULL, work_for_ever, seat)) break;
        e->workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    *error = ENGINE_OK;
    return e;
}

static void call_workers(engine *e, uint64_t ticket)
{
    atomic_store(&e->ticket, ticket);
    if (atomic_load(&e->sleepers)) {
        pthread_mutex_lock(&e->mutex);
        pthread_cond_broadcast(&e->wake);
        pthread_mutex_unlock(&e->mutex);
    }
}

void engine_destroy(engine *e)
{
    if (!e) return;
    if (e->process == getpid()) {
        call_workers(e, UINT64_MAX);
        for (int i = 0; i < e->workers; i++) pthread_join(e->worker[i], NULL);
        pthread_cond_destroy(&e->wake);
        pthread_mutex_destroy(&e->mutex);
    }
    free(e->memory);
}

int engine_isa(const engine *e) { return e->options.isa; }

/* A thread is worth its meetings, some 0.2 µs each, where it takes over enough reading or arithmetic. */
int engine_threads(const engine *e, int batch)
{
    const size_t worth = e->step_bytes * (size_t)(batch < 8 ? 1 : batch / 4) / WORTH_BYTES;
    const size_t most = (size_t)(e->options.threads < MOST_THREADS ? e->options.threads : MOST_THREADS);
    return (int)(worth < 1 ? 1 : worth < most ? worth : most);
}

static int log2_of(int n)
{
    int bits = 0;
    while (n >>= 1) bits++;
    return bits;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* How many threads are fastest: 1, 2, 4 … or all that may be worth it? On a busy machine a thread that has lost its
 * core holds up all others, and one alone can be a thousand times as fast; nothing but trying tells. So each count's
 * time for a step is kept, the best is used, and another is tried again when what its last trial lost is a 400th of
 * the time that went by since. */
static int choose_threads(const struct pace *pace, int most, double now)
{
    int best = 0;
    for (int i = 0; 1 << i < 2 * most; i++) {
        if (pace[i].step == 0) return i; /* not tried yet */
        if (pace[i].step < pace[best].step) best = i;
    }
    for (int i = 0; 1 << i < 2 * most; i++)
        if (i != best && pace[i].again <= now) return i;
    return best;
}

/* One slice that met an interruption may not make the best count look bad for long: it counts four times what it was. */
static void note_pace(struct pace *pace, int used, int most, double step, int steps, double now)
{
    const double before = pace[used].step;
    double best = before > 0 ? before : step;
    for (int i = 0; 1 << i < 2 * most; i++)
        if (pace[i].step > 0 && pace[i].step < best) best = pace[i].step;
    pace[used].step = before == 0 ? step : (before + (step < 4 * before ? step : 4 * before)) / 2;
    pace[used].again = best == before ? now : now + 400 * steps * (step - best);
}

/* ---- a step ---- */

static void relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until `threads` of the job are here, itself among them. What each wrote before, all see after. */
static void meet(engine *e, int threads)
{
    if (threads == 1) return;
    const int now = atomic_load_explicit(&e->meeting, memory_order_relaxed);
    if (atomic_fetch_add(&e->arrived, 1) == threads - 1) {
        atomic_store_explicit(&e->arrived, 0, memory_order_relaxed);
        atomic_store(&e->meeting, now + 1);
        return;
    }
    for (int spins = 0; atomic_load(&e->meeting) == now; spins++) {
        relax();
        if (spins > MEETING_SPINS) sched_yield(); /* the other one may want this core */
    }
}

/* z += block of m · x, for texts whose activations lie `stride` apart. */
static void multiply(const engine *e, const matrix *m, int block, const float *x, const uint8_t *q, size_t stride,
                     float *z, int texts)
{
    const int R = block == m->blocks - 1 ? m->last_R : m->R;
    const char *w = (const char *)m->w + block * block_bytes(m);
    const size_t row = (size_t)block * m->R * GROUP;
    if (m->scale)
        e->kernels->product8((const int8_t *)w, m->scale + row, m->offset + row, q, stride, m->K, z, texts, R);
    else e->kernels->product32((const float *)w, x, stride, m->K, z, texts, R);
}

/* From `begin` on, before `end`. */
typedef struct {
    int begin, end;
} range;

static int is_among(int32_t symbol, const int32_t *ids, range texts)
{
    for (int b = texts.begin; b < texts.end; b++)
        if (ids[b] == symbol) return 1;
    return 0;
}

/* Units of these blocks, all layers: zeros for those of the texts that are to read the boundary. */
static void begin_afresh(engine *e, int turn, const int32_t *ids, range blocks, range texts)
{
    const size_t units = (size_t)(blocks.end - blocks.begin) * GROUP;
    for (int l = 0; l < e->options.layers; l++)
        for (int b = texts.begin; b < texts.end; b++) {
            if (ids[b] != e->options.boundary) continue;
            const layer *y = &e->layers[l];
            const size_t at = (size_t)b * e->width + (size_t)blocks.begin * GROUP;
            memset(y->h[turn] + at, 0, units * sizeof *y->c);
            memset(y->c + at, 0, units * sizeof *y->c);
            if (y->q[turn]) memset(y->q[turn] + at, 128, units); /* 0 in 8 bits */
        }
}

/* These blocks of a layer for these texts: from h[turn] to h[!turn]. */
static void run_layer(engine *e, int l, int turn, const int32_t *ids, range blocks, range all_texts)
{
    const engine_options *o = &e->options;
    const size_t width = (size_t)e->width;
    layer *y = &e->layers[l];
    _Alignas(64) float z[BATCH_TILE * Z_STRIDE];
    for (int block = blocks.begin; block < blocks.end; block++)
        for (int m = all_texts.begin; m < all_texts.end; m += BATCH_TILE) {
            const int left = all_texts.end - m, texts = left < BATCH_TILE ? left : BATCH_TILE;
            const size_t at = m * width, unit = at + (size_t)block * GROUP;
            for (int i = 0; i < texts; i++)
                memcpy(z + i * Z_STRIDE,
                       l == 0 && e->table ? e->table + ((size_t)ids[m + i] * (width / GROUP) + block) * Z_STRIDE
                                          : y->bias + (size_t)block * Z_STRIDE,
                       Z_STRIDE * 4);
            if (l > 0) multiply(e, &y->input, block, y[-1].h[!turn] + at, y[-1].q[!turn] + at, width, z, texts);
            else if (!e->table)
                for (int i = 0; i < texts; i++)
                    multiply(e, &y->input, block, e->embedding + (size_t)ids[m + i] * o->embedding, NULL, 0,
                             z + i * Z_STRIDE, 1);
            multiply(e, &y->hidden, block, y->h[turn] + at, y->q[turn] + at, width,
                     z + (o->cell == ENGINE_GRU ? GROUP : 0), texts);
            e->kernels->cells(o->cell, texts, z, y->peephole + (size_t)block * 3 * GROUP, y->h[turn] + unit,
                              y->c + unit, y->h[!turn] + unit, o->int8 ? y->q[!turn] + unit : NULL, width);
        }
}

/* These blocks of the logits of these texts, after h[turn] of the last layer. */
static void project(engine *e, int turn, range blocks, range all_texts)
{
    const layer *y = &e->layers[e->options.layers - 1];
    const size_t width = (size_t)e->width;
    const matrix *p = &e->projection;
    _Alignas(64) float z[BATCH_TILE * Z_STRIDE];
    for (int block = blocks.begin; block < blocks.end; block++)
        for (int m = all_texts.begin; m < all_texts.end; m += BATCH_TILE) {
            const int left = all_texts.end - m, texts = left < BATCH_TILE ? left : BATCH_TILE;
            const int row = block * p->R * GROUP, rows = (block == p->blocks - 1 ? p->last_R : p->R) * GROUP;
            for (int i = 0; i < texts; i++) memcpy(z + i * Z_STRIDE, e->projection_bias + row, rows * 4);
            multiply(e, p, block, y->h[turn] + m * width, y->q[turn] + m * width, width, z, texts);
            for (int i = 0; i < texts; i++)
                memcpy(e->logits + (size_t)(m + i) * e->padded + row, z + i * Z_STRIDE, rows * 4);
        }
}

/* ---- from logits to a surprise or a symbol ---- */

/* The largest of a text's logits, or NaN where one is no number or +∞, or all are −∞. */
static float largest_of(const engine *e, const float *logits)
{
    const float largest = e->kernels->largest(logits, e->padded);
    return largest >= -FLT_MAX && largest <= FLT_MAX ? largest : NAN;
}

static double surprise(const engine *e, int text, int32_t symbol)
{
    const float *logits = e->logits + (size_t)text * e->padded, largest = largest_of(e, logits);
    if (isnan(largest)) return NAN;
    return log(e->kernels->mass(logits, e->padded, largest)) - ((double)logits[symbol] - largest);
}

/* SplitMix64's mixing of a counter: see kernels/drawing.py, which this repeats. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

/* Whether a is ranked before b. The order is total: equal keys by weight, equal weights by symbol. */
static int before(const candidate *a, const candidate *b)
{
    if (a->key != b->key) return a->key > b->key;
    if (a->weight != b->weight) return a->weight > b->weight;
    return a->symbol < b->symbol;
}

/* Let c[at] sink to its place in a heap of n whose root is ranked before all others. */
static void sink(candidate *c, int n, int at)
{
    const candidate sinking = c[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(c + child + 1, c + child)) child++;
        if (!before(c + child, &sinking)) break;
        c[at] = c[child];
    }
    c[at] = sinking;
}

/* Moves the first of n candidates by rank to the front, as few as weigh `mass` or more together, but at least one and
 * at most `most`. Returns how many. Ranks no more of them than it keeps. */
static int keep_first(candidate *c, int n, int most, double mass)
{
    int kept = 0;
    double sum = 0;
    for (int i = n / 2; i-- > 0;) sink(c, n, i);
    while (kept < n && kept < most && (kept == 0 || sum < mass)) {
        const candidate first = c[0];
        kept++;
        c[0] = c[n - kept];
        c[n - kept] = first;
        sink(c, n - kept, 0);
        sum += first.weight;
    }
    memmove(c, c + n - kept, (size_t)kept * sizeof *c);
    return kept;
}

static double weight_of(const candidate *c, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += c[i].weight;
    return sum;
}

/* Ranks candidates by how near their surprise is to the entropy, as drawing.py does. */
static void rank_by_typicality(candidate *c, int n)
{
    const double total = weight_of(c, n);
    double entropy = 0;
    for (int i = 0; i < n; i++) {
        const double share = c[i].weight / total;
        c[i].key = share > 0 ? -log(share) : INFINITY;
        if (share > 0) entropy += share * c[i].key;
    }
    for (int i = 0; i < n; i++) c[i].key = -rint(fabs(c[i].key - entropy) * 0x1p32);
}

/* The weights (V) of a softmax, of which the largest is 1, with 0 for what the rule's filters leave out. */
static void filter(const engine_rule *r, double *weights, candidate *c, int V)
{
    int n = 0;
    for (int i = 0; i < V; i++)
        if (weights[i] > 0) c[n++] = (candidate){weights[i], weights[i], i};
    if (r->top_k > 0 && r->top_k < n) n = keep_first(c, n, r->top_k, INFINITY);
    if (r->top_p < 1) n = keep_first(c, n, n, r->top_p * weight_of(c, n));
    if (r->min_p > 0) {
        const int before_it = n;
        n = 0;
        for (int i = 0; i < before_it; i++)
            if (c[i].weight >= r->min_p) c[n++] = c[i]; /* the largest has passed all filters so far, and is 1 */
    }
    if (r->typical < 1) {
        rank_by_typicality(c, n);
        n = keep_first(c, n, n, r->typical * weight_of(c, n));
    }
    memset(weights, 0, (size_t)V * sizeof *weights);
    for (int i = 0; i < n; i++) weights[c[i].symbol] = c[i].weight;
}

/* A text's logits at step t as the rule wants them; where that is not as they are, in this thread's row. What is
 * allowed is one table for all texts and steps; what may follow depends on the state of the text's automaton. */
static const float *adjust(engine *e, int text, int thread, int t, int phase)
{
    const engine_rule *r = &e->job.rule;
    const float *logits = e->logits + (size_t)text * e->padded;
    const uint8_t *follows = r->follows ? r->follows + (size_t)phase * (size_t)e->options.vocabulary : NULL;
    if (!r->allowed && !follows && r->penalty == 1) return logits;
    float *own = memcpy(e->adjusted + (size_t)thread * e->padded, logits, (size_t)e->padded * 4);
    const float penalty = (float)r->penalty;
    for (int back = 1; r->penalty != 1 && back <= r->window; back++) {
        const int at = t - back; /* before this call's draws: in `recent` */
        const int32_t symbol = at >= 0 ? e->job.symbols[(size_t)at * e->job.batch + text]
                                       : r->recent[(size_t)(r->window + at) * e->job.batch + text];
        if (symbol >= 0) own[symbol] = logits[symbol] > 0 ? logits[symbol] / penalty : logits[symbol] * penalty;
    }
    for (int i = 0; r->allowed && i < e->options.vocabulary; i++)
        if (!r->allowed[i]) own[i] = -INFINITY;
    for (int i = 0; follows && i < e->options.vocabulary; i++)
        if (follows[i] == ENGINE_NEVER) own[i] = -INFINITY;
    return own;
}

/* The symbol drawn for a text at step t, its automaton in state `phase`; `row` of the weights is this thread's alone. */
static int32_t draw(engine *e, int text, int row, int thread, int t, int phase)
{
    const uint64_t gamma = 0x9E3779B97F4A7C15u;
    const float *logits = e->logits + (size_t)text * e->padded, *own;
    double *heap = e->weights + (size_t)row * e->padded;
    float largest = largest_of(e, logits);
    if (!isnan(largest) && (own = adjust(e, text, thread, t, phase)) != logits) largest = largest_of(e, logits = own);
    if (isnan(largest)) {
        atomic_store(&e->not_finite, 1);
        return 0;
    }
    if (e->job.rule.temperature == 0) {
        int best = 0;
        while (logits[best] != largest) best++;
        return best;
    }
    e->kernels->softmax(logits, e->padded, largest, e->job.rule.temperature, heap);
    const int V = e->options.vocabulary;
    if (e->job.filters) filter(&e->job.rule, heap, e->candidates + (size_t)thread * e->padded, V);
    for (int i = 1; i < V; i++) heap[i] += heap[i - 1];
    const uint64_t start = mix(mix(e->job.seed) + e->job.streams[text] * gamma);
    const double number = (double)(mix(start + (e->job.position + (uint64_t)t + 1) * gamma) >> 11) * 0x1p-53;
    int low = 0, high = V - 1;
    while (low < high) { /* the first symbol whose heap is over the number's place */
        const int middle = (low + high) / 2;
        if (heap[middle] > number * heap[V - 1]) high = middle;
        else low = middle + 1;
    }
    return low;
}

/* The state of an automaton after a symbol. Of logits that are no numbers, one that may not come was drawn. */
static uint8_t after(const engine *e, uint8_t phase, int32_t symbol)
{
    const engine_rule *r = &e->job.rule;
    if (!r->follows) return 0;
    const uint8_t state = r->follows[(size_t)phase * (size_t)e->options.vocabulary + (size_t)symbol];
    return state == ENGINE_NEVER ? phase : state;
}

/* ---- a job, and the threads that do it together ---- */

/* The share of n pieces that one thread of `threads` does. */
static range share(int n, int index, int threads)
{
    return (range){(int)((int64_t)n * index / threads), (int)((int64_t)n * (index + 1) / threads)};
}

/* The slice's steps for these texts, with `others` threads in all that share the products; each of them meets the others
 * after every product. `own` are the texts of which this thread reads the logits. */
static void take_steps(engine *e, int index, range texts, range own, int others)
{
    const job *j = &e->job;
    const int B = j->batch, layers = e->options.layers, place = others > 1 ? index : 0;
    const range units = share(e->width / GROUP, place, others), symbols = share(e->projection.blocks, place, others);
    int32_t drawn; /* a single text's: each thread draws it for itself, which spares a meeting */
    uint8_t phase = B == 1 ? e->phases[0] : 0; /* likewise; those of several texts are their threads' own */
    const int32_t *ids = NULL;
    for (int t = j->begin; t < j->end; t++) {
        const int turn = t % 2;
        if (j->kind != GENERATE || t == 0) ids = j->ids + (size_t)t * B;
        else if (t == j->begin) ids = j->symbols + (size_t)(t - 1) * B;
        if (is_among(e->options.boundary, ids, texts)) {
            begin_afresh(e, turn, ids, units, texts);
            meet(e, others);
        }
        for (int l = 0; l < layers; l++) {
            run_layer(e, l, turn, ids, units, texts);
            meet(e, others);
        }
        if (j->kind == READ && !(j->logits && t == j->length - 1)) continue;
        project(e, !turn, symbols, texts);
        meet(e, others);
        if (j->kind == SCORE)
            for (int b = own.begin; b < own.end; b++) j->nats[(size_t)t * B + b] = surprise(e, b, ids[B + b]);
        if (j->kind == GENERATE && B == 1) {
            drawn = draw(e, 0, index, index, t, phase);
            phase = after(e, phase, drawn);
            if (index == 0) j->symbols[t] = drawn;
            ids = &drawn;
        }
        if (j->kind == GENERATE && B > 1) {
            int32_t *row = j->symbols + (size_t)t * B;
            for (int b = own.begin; b < own.end; b++) {
                row[b] = draw(e, b, b, index, t, e->phases[b]);
                e->phases[b] = after(e, e->phases[b], row[b]);
            }
            meet(e, others);
            ids = row;
        }
    }
    if (j->kind == GENERATE && B == 1 && index == 0) e->phases[0] = phase; /* all have met since they read it */
}

/* The next texts of the slice that nobody does yet: whole tiles, and fewer the less there is left, so that a thread
 * which lost its core for a while leaves the others little to wait for. Empty when all are taken. */
static range claim(engine *e)
{
    const int B = e->job.batch;
    int begin = atomic_load(&e->claimed), size;
    do {
        size = (B - begin) / (2 * e->job.threads) / MOST_TEXTS * MOST_TEXTS;
        size = size > BATCH_TILE ? BATCH_TILE : size < MOST_TEXTS ? MOST_TEXTS : size;
        if (size > B - begin) size = B - begin;
    } while (size > 0 && !atomic_compare_exchange_weak(&e->claimed, &begin, begin + size));
    return (range){begin, begin + size};
}

/* Whether the texts are enough to fill the tiles of all threads. */
static int are_apart(const job *j) { return j->batch >= MOST_TEXTS * j->threads; }

/* A thread's part of a job's slice. Either it takes texts, does all there is for them, and takes the next; or, where the
 * texts are too few for that, each does its share of every product for all texts, and they meet after each. Every sum
 * is the same in both, to the bit. */
static void work(engine *e, int index)
{
    const int threads = e->job.threads, B = e->job.batch;
    if (are_apart(&e->job))
        for (range texts; (texts = claim(e)).begin < texts.end;) take_steps(e, index, texts, texts, 1);
    else take_steps(e, index, (range){0, B}, share(B, index, threads), threads);
    meet(e, threads);
}

static void *work_for_ever(void *argument)
{
    const struct seat *seat = argument;
    engine *e = seat->engine;
    for (uint64_t seen = 0, ticket;;) {
        int spins = 0;
        while ((ticket = atomic_load(&e->ticket)) == seen && ++spins < SPINS) relax();
        if (ticket == seen) {
            pthread_mutex_lock(&e->mutex);
            atomic_fetch_add(&e->sleepers, 1);
            while ((ticket = atomic_load(&e->ticket)) == seen) pthread_cond_wait(&e->wake, &e->mutex);
            atomic_fetch_sub(&e->sleepers, 1);
            pthread_mutex_unlock(&e->mutex);
        }
        if (ticket == UINT64_MAX) return NULL;
        if (seat->index < (int)(ticket & 255)) work(e, seat->index);
        seen = ticket;
    }
}

/* The caller's state (layers, states, batch, hidden) into the layers' own h, c and q, and back. */
static void move_state(engine *e, float *state, int turn, int out)
{
    const engine_options *o = &e->options;
    const size_t H = (size_t)o->hidden;
    for (int l = 0; l < o->layers; l++)
        for (int s = 0; s < e->states; s++)
            for (int b = 0; b < e->job.batch; b++, state += H) {
                layer *y = &e->layers[l];
                const size_t at = (size_t)b * e->width;
                float *own = (s == 0 ? y->h[turn] : y->c) + at;
                memcpy(out ? state : own, out ? own : state, H * 4);
                if (out || s > 0 || !o->int8) continue;
                for (size_t u = 0; u < H; u++) {
                    const float h = state[u] > -1 ? state[u] < 1 ? state[u] : 1 : -1; /* NaN too becomes −1 */
                    y->q[turn][at + u] = (uint8_t)lrintf(h * 127 + 128);
                }
            }
}

/* The job in slices, each with the threads that seem best by then. */
static void run_slices(engine *e)
{
    job *j = &e->job;
    struct pace *pace = e->pace[log2_of(j->batch)];
    const int worth = engine_threads(e, j->batch);
    const int most = e->process != getpid() ? 1 : worth <= e->workers ? worth : e->workers + 1;
    double now = seconds();
    for (j->begin = 0; j->begin < j->length; j->begin = j->end) {
        const int choice = choose_threads(pace, most, now);
        j->threads = 1 << choice < most ? 1 << choice : most;
        const double slice = are_apart(j) ? APART_SLICE_SECONDS : SLICE_SECONDS;
        const double steps = pace[choice].step > 0 ? slice / pace[choice].step : 8;
        j->end = j->begin + (steps < 1 ? 1 : steps < j->length - j->begin ? (int)steps : j->length - j->begin);
        atomic_store(&e->claimed, 0);
        if (j->threads > 1) call_workers(e, ((atomic_load(&e->ticket) >> 8) + 1) << 8 | (uint64_t)j->threads);
        work(e, 0);
        const double began = now, step = ((now = seconds()) - began) / (j->end - j->begin);
        note_pace(pace, choice, most, step, j->end - j->begin, now);
    }
}

static int run(engine *e, const job *j, float *state)
{
    if (!in_range(j->batch, 1, e->options.batch) || j->length < 0) return ENGINE_BAD_ARGUMENT;
    const size_t read = (size_t)j->batch * (j->kind == GENERATE ? 1 : (size_t)j->length + (j->kind == SCORE));
    for (size_t i = 0; i < read; i++)
        if (!in_range(j->ids[i], 0, e->options.vocabulary - 1)) return ENGINE_BAD_ARGUMENT;
    e->job = *j;
    atomic_store(&e->not_finite, 0);
    move_state(e, state, 0, 0);
    run_slices(e);
    move_state(e, state, j->length % 2, 1);
    if (j->logits && j->length > 0)
        for (int b = 0; b < j->batch; b++)
            memcpy(j->logits + (size_t)b * e->options.vocabulary, e->logits + (size_t)b * e->padded,
                   (size_t)e->options.vocabulary * 4);
    return atomic_load(&e->not_finite) ? ENGINE_NOT_FINITE : ENGINE_OK;
}

int engine_read(engine *e, int batch, int length, const int32_t *ids, float *state, float *logits)
{
    return run(e, &(job){.kind = READ, .batch = batch, .length = length, .ids = ids, .logits = logits}, state);
}

int engine_score(engine *e, int batch, int length, const int32_t *ids, float *state, double *nats)
{
    return run(e, &(job){.kind = SCORE, .batch = batch, .length = length, .ids = ids, .nats = nats}, state);
}

static int is_share(double x) { return x >= 0 && x <= 1; }

/* Whether something may come in each state that a text is in or can come to. */
static int is_automaton(const engine *e, const engine_rule *r, int batch)
{
    const int V = e->options.vocabulary;
    uint8_t goes_on[ENGINE_NEVER] = {0};
    if (!in_range(r->states, 1, ENGINE_NEVER)) return 0;
    for (int s = 0; s < r->states; s++)
        for (int i = 0; i < V && !goes_on[s]; i++) goes_on[s] = r->follows[(size_t)s * (size_t)V + (size_t)i] != ENGINE_NEVER;
    for (size_t i = 0; i < (size_t)r->states * (size_t)V; i++)
        if (r->follows[i] != ENGINE_NEVER && !(r->follows[i] < r->states && goes_on[r->follows[i]])) return 0;
    for (int b = 0; b < batch; b++)
        if (!(r->phases[b] < r->states && goes_on[r->phases[b]])) return 0;
    return 1;
}

static int is_rule(const engine *e, const engine_rule *r, int batch)
{
    if (!(r->temperature >= 0 && r->temperature <= DBL_MAX) || !is_share(r->top_p) || !is_share(r->min_p) ||
        !is_share(r->typical) || !(r->penalty > 0 && r->penalty <= FLT_MAX) || r->top_k < 0 || r->window < 0)
        return 0;
    if (r->penalty != 1)
        for (size_t i = 0; i < (size_t)r->window * (size_t)batch; i++)
            if (!in_range(r->recent[i], -1, e->options.vocabulary - 1)) return 0;
    if (r->allowed && !memchr(r->allowed, 1, (size_t)e->options.vocabulary)) return 0;
    return !r->follows || is_automaton(e, r, batch);
}

int engine_generate(engine *e, int batch, int length, const int32_t *ids, float *state, const engine_rule *rule,
                    uint64_t seed, const uint64_t *streams, uint64_t position, int32_t *symbols)
{
    if (!is_rule(e, rule, batch > 0 ? batch : 0)) return ENGINE_BAD_ARGUMENT;
    if (batch > 0 && batch <= e->options.batch && rule->follows) memcpy(e->phases, rule->phases, (size_t)batch);
    const job drawing = {.kind = GENERATE, .batch = batch, .length = length, .ids = ids, .symbols = symbols,
                         .rule = *rule, .seed = seed, .streams = streams, .position = position,
                         .filters = rule->top_k > 0 || rule->top_p < 1 || rule->min_p > 0 || rule->typical < 1};
    return run(e, &drawing, state);
}
