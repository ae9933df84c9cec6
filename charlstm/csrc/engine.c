/* The inference engine of engine.h: what one step computes, and how threads share it.
 *
 *     engine_kernels.c   products, cells and softmax, for each instruction set (engine_isa.h)
 *     engine_weights.c   the memory of a handle and the order of the weights in it
 *     engine_sampling.c  from logits to a surprisal or a symbol
 *
 * The time of one step is the time to read the weights once, so everything here serves that: weights are stored in the
 * order in which they are read, in 8 bits if the caller allows; the first layer's input product, which can only be one
 * of V values, is a table; the work of a layer is split over the threads by blocks of units, and a thread computes all
 * gates of its units, so that there is one barrier a layer and no other traffic.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, T steps, B batch.
 */
#include "engine_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLICE_SECONDS       1e-3 /* of a job, between two choices of how many threads do it */
#define APART_SLICE_SECONDS 8e-3 /* without barriers in it, where no thread waits for one that has lost its core */
#define WORTH_BYTES         (96 << 10) /* of weights, read by each thread: below, its barriers cost more than it saves */

/* ---- the handle ---- */

int charlstm_abi(void) { return CHARLSTM_ABI; }

static int is_set(int isa) { return isa >= 0 && isa < instruction_set_count; }

const char *engine_isa_name(int isa) { return is_set(isa) ? instruction_sets[isa].name : NULL; }
int engine_isa_present(int isa) { return is_set(isa) && instruction_sets[isa].is_present(); }
int engine_isa_has_int8(int isa) { return is_set(isa) && instruction_sets[isa].has_int8; }

engine *engine_create(const engine_options *o, const float *const *weights, int *error)
{
    *error = ENGINE_BAD_ARGUMENT;
    if (!in_range(o->cell, LSTM, RNN) || !in_range(o->vocabulary, 1, 1114112) || !in_range(o->embedding, 1, 65536) ||
        !in_range(o->hidden, 1, 65536) || !in_range(o->layers, 1, MOST_LAYERS) || !in_range(o->int8, 0, 1) ||
        !in_range(o->batch, 1, 4096) || o->threads < 1 || o->isa < -1 || o->isa >= instruction_set_count ||
        !in_range(o->boundary, -1, o->vocabulary - 1))
        return NULL;
    int isa = o->isa;
    if (isa < 0)
        while (!instruction_sets[++isa].is_present()) {}
    if (!instruction_sets[isa].is_present()) return NULL;
    *error = ENGINE_NO_MEMORY;
    engine *e = engine_allocate(o, isa, weights);
    if (!e) return NULL;
    e->pool = pool_create(engine_threads(e, o->batch)); /* fewer threads than asked for are no error */
    *error = ENGINE_OK;
    return e;
}

void engine_destroy(engine *e)
{
    if (!e) return;
    pool_destroy(e->pool);
    free(e->memory);
}

int engine_isa(const engine *e) { return e->options.isa; }

/* ---- how many threads ---- */

/* A thread is worth its barriers, some 0.2 µs each, where it takes over enough reading or arithmetic. */
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
 * core holds up all others at every barrier; only trying shows it. So the time of a step is kept for each count, the
 * best is used, and another is tried again when what its last trial lost is a 400th of the time that went by since.
 *
 * Measured on two cores of an AMD EPYC with a load of about 5, one run of each, fp32, median µs a character with
 * this choice and with the fixed count of engine_threads: one sequence, 1 × 256: 24 and 1,803; 1 × 512: 116 and 1,929;
 * 2 × 512: 605 and 1,683. 64 sequences: 12.6 and 10.7; 47.9 and 33.7; 203 and 215. Without load: not measured. */
static int choose_threads(const pace *pace, int most, double now)
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

/* One slice that met an interruption may not make the best count look bad for long: it counts four times what it was.
 */
static void note_pace(pace *pace, int used, int most, double step, int steps, double now)
{
    const double before = pace[used].step;
    double best = before > 0 ? before : step;
    for (int i = 0; 1 << i < 2 * most; i++)
        if (pace[i].step > 0 && pace[i].step < best) best = pace[i].step;
    pace[used].step = before == 0 ? step : (before + (step < 4 * before ? step : 4 * before)) / 2;
    pace[used].again = best == before ? now : now + 400 * steps * (step - best);
}

/* ---- a step ---- */

/* 8-bit activations from an index on; NULL in fp32, which has none. */
static const uint8_t *from(const uint8_t *q, size_t at) { return q ? q + at : NULL; }

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
static void reset_state(engine *e, int turn, const int32_t *ids, range blocks, range texts)
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
            if (l > 0) multiply(e, &y->input, block, y[-1].h[!turn] + at, from(y[-1].q[!turn], at), width, z, texts);
            else if (!e->table)
                for (int i = 0; i < texts; i++)
                    multiply(e, &y->input, block, e->embedding + (size_t)ids[m + i] * o->embedding, NULL, 0,
                             z + i * Z_STRIDE, 1);
            multiply(e, &y->hidden, block, y->h[turn] + at, from(y->q[turn], at), width,
                     z + (o->cell == GRU ? GROUP : 0), texts);
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
            multiply(e, p, block, y->h[turn] + m * width, from(y->q[turn], m * width), width, z, texts);
            for (int i = 0; i < texts; i++)
                memcpy(e->logits + (size_t)(m + i) * e->padded + row, z + i * Z_STRIDE, rows * 4);
        }
}

/* ---- a job, and the threads that do it together ---- */

/* The share of n pieces that one thread of `threads` does. */
static range share(int n, int index, int threads)
{
    return (range){(int)((int64_t)n * index / threads), (int)((int64_t)n * (index + 1) / threads)};
}

/* The slice's steps for these texts, with `others` threads in all that share the products; each of them meets the
 * others after every product. `own` are the texts of which this thread reads the logits. */
static void take_steps(engine *e, int index, range texts, range own, int others)
{
    const job *j = &e->job;
    const int B = j->batch, layers = e->options.layers, place = others > 1 ? index : 0;
    const range units = share(e->width / GROUP, place, others), symbols = share(e->projection.blocks, place, others);
    int32_t symbol; /* a single text's: each thread draws it for itself, which spares a meeting */
    uint8_t phase = B == 1 ? e->phases[0] : 0; /* likewise; those of several texts are their threads' own */
    const int32_t *ids = NULL;
    for (int t = j->begin; t < j->end; t++) {
        const int turn = t % 2;
        if (j->kind != GENERATE || t == 0) ids = j->ids + (size_t)t * B;
        else if (t == j->begin) ids = j->symbols + (size_t)(t - 1) * B;
        if (is_among(e->options.boundary, ids, texts)) {
            reset_state(e, turn, ids, units, texts);
            pool_barrier(e->pool, others);
        }
        for (int l = 0; l < layers; l++) {
            run_layer(e, l, turn, ids, units, texts);
            pool_barrier(e->pool, others);
        }
        if (j->kind == READ && !(j->logits && t == j->length - 1)) continue;
        project(e, !turn, symbols, texts);
        pool_barrier(e->pool, others);
        if (j->kind == SCORE)
            for (int b = own.begin; b < own.end; b++) j->nats[(size_t)t * B + b] = surprisal(e, b, ids[B + b]);
        if (j->kind == GENERATE && B == 1) {
            symbol = sample(e, 0, index, index, t, phase);
            phase = phase_after(e, phase, symbol);
            if (index == 0) j->symbols[t] = symbol;
            ids = &symbol;
        }
        if (j->kind == GENERATE && B > 1) {
            int32_t *row = j->symbols + (size_t)t * B;
            for (int b = own.begin; b < own.end; b++) {
                row[b] = sample(e, b, b, index, t, e->phases[b]);
                e->phases[b] = phase_after(e, e->phases[b], row[b]);
            }
            pool_barrier(e->pool, others);
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

/* A thread's part of a job's slice. Either it takes texts, does all there is for them, and takes the next; or, where
 * the texts are too few for that, each does its share of every product for all texts, and they meet after each. Every
 * sum is the same in both, to the bit. */
static void work(void *argument, int index)
{
    engine *e = argument;
    const int threads = e->job.threads, B = e->job.batch;
    if (are_apart(&e->job)) {
        for (range texts = claim(e); texts.begin < texts.end; texts = claim(e)) take_steps(e, index, texts, texts, 1);
    } else take_steps(e, index, (range){0, B}, share(B, index, threads), threads);
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
    pace *pace = e->pace[log2_of(j->batch)];
    const int worth = engine_threads(e, j->batch);
    const int available = pool_threads(e->pool), most = worth < available ? worth : available;
    double now = seconds();
    for (j->begin = 0; j->begin < j->length; j->begin = j->end) {
        const int choice = choose_threads(pace, most, now);
        j->threads = 1 << choice < most ? 1 << choice : most;
        const double slice = are_apart(j) ? APART_SLICE_SECONDS : SLICE_SECONDS;
        const double steps = pace[choice].step > 0 ? slice / pace[choice].step : 8;
        j->end = j->begin + (steps < 1 ? 1 : steps < j->length - j->begin ? (int)steps : j->length - j->begin);
        atomic_store(&e->claimed, 0);
        pool_run(e->pool, j->threads, work, e);
        const double start = now, step = ((now = seconds()) - start) / (j->end - j->begin);
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

int engine_generate(engine *e, int batch, int length, const int32_t *ids, float *state, const engine_rule *rule,
                    uint64_t seed, const uint64_t *streams, uint64_t position, int32_t *symbols)
{
    if (!is_rule(e, rule, batch > 0 ? batch : 0)) return ENGINE_BAD_ARGUMENT;
    if (batch > 0 && batch <= e->options.batch && rule->follows) memcpy(e->phases, rule->phases, (size_t)batch);
    const job generation = {.kind = GENERATE,
                            .batch = batch,
                            .length = length,
                            .ids = ids,
                            .symbols = symbols,
                            .rule = *rule,
                            .seed = seed,
                            .streams = streams,
                            .position = position,
                            .filters = rule->top_k > 0 || rule->top_p < 1 || rule->min_p > 0 || rule->typical < 1};
    return run(e, &generation, state);
}
