/* The inference engine of engine.h: what one step computes, and how threads share it.
 *
 *     engine_kernels.c   products, cells and softmax, for each instruction set (engine_isa.h)
 *     engine_weights.c   the memory of a handle and the order of the weights in it
 *     engine_sampling.c  from logits to a surprisal or a symbol
 *
 * The time of one step is the time to read the weights once. So the weights are stored in the order in which they are
 * read, in 8 bits if the caller allows it. The first layer's input product, which has only V possible values, is a
 * table. The blocks of units of a layer are divided among the threads, and a thread computes all gates of its units, so
 * that the threads exchange data only at one barrier per layer.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, T steps, B batch.
 */
#include "engine_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLICE_SECONDS       1e-3 /* duration of a slice of a job; the number of threads is chosen for each slice */
#define APART_SLICE_SECONDS 8e-3 /* the same without barriers, where no thread waits for a suspended one */
#define WORTH_BYTES         (96 << 10) /* of weights for each thread; with fewer, its barriers cost more than it saves */

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
    e->pool = pool_create(engine_threads(e, o->batch)); /* fewer threads than requested are not an error */
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

/* Another thread is used only if its part of the step takes longer than its barriers, about 0.2 µs each. */
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

/* Choose the number of threads for the next slice: 1, 2, 4 …, or all that engine_threads allows. On a machine with
 * other load a suspended thread delays all others at every barrier, and only a trial shows that. So the time of a step
 * is recorded for each number of threads, and the fastest is used. Another number is tried again when the time that its
 * last trial lost is at most a 400th of the time since then.
 *
 * Measured on two cores of an AMD EPYC (Zen 4), fp32, µs per character with this choice, and with the fixed number of
 * engine_threads. Idle: medians of five processes of each kind in turn. Load of about 5: one run each.
 *
 *     idle            one sequence    1 × 256: 13.0 and 7.4      1 × 512: 57.0 and 111    2 × 512: 218 and 292
 *                     64 sequences    1 × 256: 3.6 and 3.5       1 × 512: 12.1 and 12.1   2 × 512: 37.4 and 38.8
 *     loaded          one sequence    1 × 256: 23.9 and 1,803    1 × 512: 116 and 1,929   2 × 512: 605 and 1,683
 *                     64 sequences    1 × 256: 12.6 and 10.7     1 × 512: 47.9 and 33.7   2 × 512: 203 and 215
 *
 * So one sequence gains up to a factor of 75 on a loaded machine, and of two on an idle one whose threads share
 * processors with other virtual machines; 64 sequences gain nothing. (Idle 1 × 256: the median ratio of the pairs is
 * 1.04.) */
static int choose_threads(const pace *pace, int most, double now)
{
    int best = 0;
    for (int i = 0; 1 << i < 2 * most; i++) {
        if (pace[i].step == 0) return i; /* not measured yet */
        if (pace[i].step < pace[best].step) best = i;
    }
    for (int i = 0; 1 << i < 2 * most; i++)
        if (i != best && pace[i].again <= now) return i;
    return best;
}

/* Record the time of a slice. An interruption of one slice must not exclude the fastest number of threads for long, so
 * a new time counts as at most four times the previous one. */
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

/* The 8-bit activations from index `at` on; NULL in fp32, which does not use them. */
static const uint8_t *from(const uint8_t *q, size_t at) { return q ? q + at : NULL; }

/* z += block of m · x, for sequences whose activations are `stride` elements apart. */
static void multiply(const engine *e, const matrix *m, int block, const float *x, const uint8_t *q, size_t stride,
                     float *z, int sequences)
{
    const int R = block == m->blocks - 1 ? m->last_R : m->R;
    const char *w = (const char *)m->w + block * block_bytes(m);
    const size_t row = (size_t)block * m->R * GROUP;
    if (m->scale)
        e->kernels->product8((const int8_t *)w, m->scale + row, m->offset + row, q, stride, m->K, z, sequences, R);
    else e->kernels->product32((const float *)w, x, stride, m->K, z, sequences, R);
}

/* The indices from `begin` to `end` − 1. */
typedef struct {
    int begin, end;
} range;

static int is_among(int32_t symbol, const int32_t *ids, range sequences)
{
    for (int b = sequences.begin; b < sequences.end; b++)
        if (ids[b] == symbol) return 1;
    return 0;
}

/* Set the units of these blocks to zero, in all layers, for the sequences whose next symbol is the boundary. */
static void reset_state(engine *e, int turn, const int32_t *ids, range blocks, range sequences)
{
    const size_t units = (size_t)(blocks.end - blocks.begin) * GROUP;
    for (int l = 0; l < e->options.layers; l++)
        for (int b = sequences.begin; b < sequences.end; b++) {
            if (ids[b] != e->options.boundary) continue;
            const layer *y = &e->layers[l];
            const size_t at = (size_t)b * e->width + (size_t)blocks.begin * GROUP;
            memset(y->h[turn] + at, 0, units * sizeof *y->c);
            memset(y->c + at, 0, units * sizeof *y->c);
            if (y->q[turn]) memset(y->q[turn] + at, 128, units); /* 0 in 8 bits */
        }
}

/* Compute these blocks of a layer for these sequences, from h[turn] to h[!turn]. */
static void run_layer(engine *e, int l, int turn, const int32_t *ids, range blocks, range all_sequences)
{
    const engine_options *o = &e->options;
    const size_t width = (size_t)e->width;
    layer *y = &e->layers[l];
    _Alignas(64) float z[BATCH_TILE * Z_STRIDE];
    for (int block = blocks.begin; block < blocks.end; block++)
        for (int m = all_sequences.begin; m < all_sequences.end; m += BATCH_TILE) {
            const int left = all_sequences.end - m, sequences = left < BATCH_TILE ? left : BATCH_TILE;
            const size_t at = m * width, unit = at + (size_t)block * GROUP;
            for (int i = 0; i < sequences; i++)
                memcpy(z + i * Z_STRIDE,
                       l == 0 && e->table ? e->table + ((size_t)ids[m + i] * (width / GROUP) + block) * Z_STRIDE
                                          : y->bias + (size_t)block * Z_STRIDE,
                       Z_STRIDE * 4);
            if (l > 0)
                multiply(e, &y->input, block, y[-1].h[!turn] + at, from(y[-1].q[!turn], at), width, z, sequences);
            else if (!e->table)
                for (int i = 0; i < sequences; i++)
                    multiply(e, &y->input, block, e->embedding + (size_t)ids[m + i] * o->embedding, NULL, 0,
                             z + i * Z_STRIDE, 1);
            multiply(e, &y->hidden, block, y->h[turn] + at, from(y->q[turn], at), width,
                     z + (o->cell == GRU ? GROUP : 0), sequences);
            e->kernels->cells(o->cell, sequences, z, y->peephole + (size_t)block * 3 * GROUP, y->h[turn] + unit,
                              y->c + unit, y->h[!turn] + unit, o->int8 ? y->q[!turn] + unit : NULL, width);
        }
}

/* Compute these blocks of the logits of these sequences from h[turn] of the last layer. */
static void project(engine *e, int turn, range blocks, range all_sequences)
{
    const layer *y = &e->layers[e->options.layers - 1];
    const size_t width = (size_t)e->width;
    const matrix *p = &e->projection;
    _Alignas(64) float z[BATCH_TILE * Z_STRIDE];
    for (int block = blocks.begin; block < blocks.end; block++)
        for (int m = all_sequences.begin; m < all_sequences.end; m += BATCH_TILE) {
            const int left = all_sequences.end - m, sequences = left < BATCH_TILE ? left : BATCH_TILE;
            const int row = block * p->R * GROUP, rows = (block == p->blocks - 1 ? p->last_R : p->R) * GROUP;
            for (int i = 0; i < sequences; i++) memcpy(z + i * Z_STRIDE, e->projection_bias + row, rows * 4);
            multiply(e, p, block, y->h[turn] + m * width, from(y->q[turn], m * width), width, z, sequences);
            for (int i = 0; i < sequences; i++)
                memcpy(e->logits + (size_t)(m + i) * e->padded + row, z + i * Z_STRIDE, rows * 4);
        }
}

/* ---- a job, and how threads share it ---- */

/* The part of n items that thread `index` of `threads` computes. */
static range share(int n, int index, int threads)
{
    return (range){(int)((int64_t)n * index / threads), (int)((int64_t)n * (index + 1) / threads)};
}

/* Compute the slice's steps for these sequences. `others` is the number of threads that share each product; they wait
 * at a barrier after it. This thread reads the logits of the sequences `own`. */
static void take_steps(engine *e, int index, range sequences, range own, int others)
{
    const job *j = &e->job;
    const int B = j->batch, layers = e->options.layers, place = others > 1 ? index : 0;
    const range units = share(e->width / GROUP, place, others), symbols = share(e->projection.blocks, place, others);
    int32_t symbol;                            /* of a single sequence: each thread samples it, which saves a barrier */
    int32_t phase = B == 1 ? e->phases[0] : 0; /* likewise; with several sequences, e->phases is used */
    const int32_t *ids = NULL;
    for (int t = j->begin; t < j->end; t++) {
        const int turn = t % 2;
        if (j->kind != GENERATE || t == 0) ids = j->ids + (size_t)t * B;
        else if (t == j->begin) ids = j->symbols + (size_t)(t - 1) * B;
        if (is_among(e->options.boundary, ids, sequences)) {
            reset_state(e, turn, ids, units, sequences);
            pool_barrier(e->pool, others);
        }
        for (int l = 0; l < layers; l++) {
            run_layer(e, l, turn, ids, units, sequences);
            pool_barrier(e->pool, others);
        }
        if (j->kind == READ && !(j->logits && t == j->length - 1)) continue;
        project(e, !turn, symbols, sequences);
        pool_barrier(e->pool, others);
        if (j->kind == SCORE)
            for (int b = own.begin; b < own.end; b++) score(e, b, index, t);
        if (j->kind == GENERATE && B == 1) {
            symbol = sample(e, 0, index, index, t, phase);
            phase = phase_after(e, phase, symbol, t);
            if (index == 0) j->symbols[t] = symbol;
            ids = &symbol;
        }
        if (j->kind == GENERATE && B > 1) {
            int32_t *row = j->symbols + (size_t)t * B;
            for (int b = own.begin; b < own.end; b++) {
                row[b] = sample(e, b, b, index, t, e->phases[b]);
                e->phases[b] = phase_after(e, e->phases[b], row[b], t);
            }
            pool_barrier(e->pool, others);
            ids = row;
        }
    }
    if (j->kind == GENERATE && B == 1 && index == 0)
        e->phases[0] = phase; /* all threads passed a barrier after reading it */
}

/* Claim the next sequences of the slice, in whole tiles. Claims shrink towards the end, so that the others wait only
 * briefly for a thread that was suspended. Empty when all sequences are claimed. */
static range claim(engine *e)
{
    const int B = e->job.batch;
    int begin = atomic_load(&e->claimed), size;
    do {
        size = (B - begin) / (2 * e->job.threads) / MOST_SEQUENCES * MOST_SEQUENCES;
        size = size > BATCH_TILE ? BATCH_TILE : size < MOST_SEQUENCES ? MOST_SEQUENCES : size;
        if (size > B - begin) size = B - begin;
    } while (size > 0 && !atomic_compare_exchange_weak(&e->claimed, &begin, begin + size));
    return (range){begin, begin + size};
}

/* Whether there are enough sequences to fill a tile of each thread. */
static int are_apart(const job *j) { return j->batch >= MOST_SEQUENCES * j->threads; }

/* Do one thread's part of a slice. With enough sequences, the thread claims some, computes all their steps, and claims
 * the next. With fewer, it computes its part of every product for all sequences, with a barrier after each product.
 * Every sum is the same in both cases, to the bit. */
static void work(void *argument, int index)
{
    engine *e = argument;
    const int threads = e->job.threads, B = e->job.batch;
    if (are_apart(&e->job)) {
        for (range sequences = claim(e); sequences.begin < sequences.end; sequences = claim(e))
            take_steps(e, index, sequences, sequences, 1);
    } else take_steps(e, index, (range){0, B}, share(B, index, threads), threads);
}

/* Copy the caller's state (layers, states, batch, hidden) into h, c and q of the layers, or (`out`) back. */
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
                if (!out && s == 0 && o->int8) e->kernels->quantise(own, e->width, y->q[turn] + at);
            }
}

/* Run a job in slices, and choose the number of threads for each. */
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

int engine_score(engine *e, int batch, int length, const int32_t *ids, float *state, double *nats, int top,
                 int32_t *best, double *shares)
{
    if (!in_range(top, 0, e->options.vocabulary)) return ENGINE_BAD_ARGUMENT;
    const job scoring = {.kind = SCORE,
                         .batch = batch,
                         .length = length,
                         .ids = ids,
                         .nats = nats,
                         .top = top,
                         .best = best,
                         .shares = shares};
    return run(e, &scoring, state);
}

int engine_generate(engine *e, int batch, int length, const int32_t *ids, float *state, const engine_rule *rule,
                    uint64_t seed, const uint64_t *streams, uint64_t position, int32_t *symbols)
{
    if (!is_rule(e, rule, batch > 0 ? batch : 0)) return ENGINE_BAD_ARGUMENT;
    if (batch > 0 && batch <= e->options.batch && rule->follows) memcpy(e->phases, rule->phases, (size_t)batch * 4);
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
