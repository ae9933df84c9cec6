/* Check the inference engine and the training kernels against plain equations in double, for every instruction set that
 * this processor has. Needs nothing but charlstm/csrc, so that it also runs in an emulator and under sanitizers.
 *
 *     cc -std=gnu11 -I charlstm/csrc tests/csrc/check_cores.c charlstm/csrc/[^.]*.c -lm -pthread && ./a.out
 *
 * The argument `few` checks fewer cases, for an emulator; `int8` checks the engine in int8 only.
 *
 * Prints the instruction sets and the number of values compared; exits with 1 at the first value that is wrong.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, L layers, B batch, T time. Gates are in torch's order.
 */
#include "engine.h"
#include "recurrence.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long compared;
static int few, only_int8;

static void expect(double got, double wanted, double tolerance, const char *what, const char *set, int cell)
{
    compared++;
    if (fabs(got - wanted) <= tolerance * (1 + fabs(wanted))) return;
    printf("%s, cell %d, %s: got %.9g, wanted %.9g\n", set, cell, what, got, wanted);
    exit(1);
}

static void *zeros(size_t count, size_t size)
{
    void *array = calloc(count ? count : 1, size);
    if (!array) abort();
    return array;
}

static double uniform(double bound)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return bound * ((double)(state >> 11) * 0x1p-52 - 1);
}

static double *random_array(size_t count, double bound)
{
    double *array = zeros(count, sizeof *array);
    for (size_t i = 0; i < count; i++) array[i] = (float)uniform(bound); /* exact in float, too */
    return array;
}

static const int gates_of[] = {[LSTM] = 4, [PEEPHOLE] = 4, [COUPLED] = 3, [GRU] = 3, [RNN] = 1};

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* One step of the reference: h (H) and c (H) become the next. x (G·H) is the input's part of the gates. weight is
 * multiplied by h_read, which is h, or h rounded to 8 bits. */
static void step(int cell, int H, const double *x, const double *weight, const double *bias, const double *peephole,
                 const double *h_read, double *h, double *c)
{
    double z[4 * 64], n[64];
    for (int row = 0; row < gates_of[cell] * H; row++) {
        z[row] = bias[row];
        for (int k = 0; k < H; k++) z[row] += weight[(size_t)row * H + k] * h_read[k];
    }
    for (int u = 0; u < H; u++) n[u] = cell == GRU ? z[2 * H + u] : 0;
    for (int row = 0; row < gates_of[cell] * H; row++) z[row] += x[row];
    for (int u = 0; u < H; u++) switch (cell) {
            case LSTM:
                c[u] = sigmoid(z[H + u]) * c[u] + sigmoid(z[u]) * tanh(z[2 * H + u]);
                h[u] = sigmoid(z[3 * H + u]) * tanh(c[u]);
                break;
            case PEEPHOLE: {
                const double old = c[u];
                c[u] = sigmoid(z[H + u] + peephole[H + u] * old) * old;
                c[u] += sigmoid(z[u] + peephole[u] * old) * tanh(z[2 * H + u]);
                h[u] = sigmoid(z[3 * H + u] + peephole[2 * H + u] * c[u]) * tanh(c[u]);
                break;
            }
            case COUPLED:
                c[u] = sigmoid(z[u]) * c[u] + (1 - sigmoid(z[u])) * tanh(z[H + u]);
                h[u] = sigmoid(z[2 * H + u]) * tanh(c[u]);
                break;
            case GRU: {
                const double update = sigmoid(z[H + u]);
                h[u] = (1 - update) * tanh(x[2 * H + u] + sigmoid(z[u]) * n[u]) + update * h[u];
                break;
            }
            default: h[u] = tanh(z[u]);
        }
}

/* ---- the engine ---- */

enum { MOST_ARRAYS = 3 + 5 * 6 };

#define WEIGHT_BOUND 0.2 /* of the absolute value of each weight */

/* Largest deviation from the reference, relative to 1 + its absolute value.
 *
 * In fp32 the deviation is rounding error: sums of at most 134 terms, each with a relative error of 6e-8, over 9 steps.
 *
 * In int8 the reference rounds the same weights and activations to 8 bits as the engine, so both normally multiply the
 * same integers, and the deviation is that of fp32. An exception is an activation so close to the middle between two
 * steps of 1/127 that the error of fp32 decides which step it is rounded to. One such activation changes a sum by at
 * most WEIGHT_BOUND / 127 = 0.0016. The limit allows three of them in one sum; the largest deviation measured, over
 * 153,224 values on x86-64, was 0.8 of one. */
#define FP32_TOLERANCE 2e-5
#define INT8_TOLERANCE (3 * WEIGHT_BOUND / 127)

typedef struct {
    int cell, V, E, H, L, arrays;
    double *weights[MOST_ARRAYS]; /* in the order of engine.h */
    double *bytes[MOST_ARRAYS];   /* the same, with those matrices rounded to 8 bits that the engine rounds in int8 */
    float *given[MOST_ARRAYS];    /* weights, as the engine takes them */
} model;

/* Add an array of random weights. K is the length of the rows that int8 rounds to multiples of a 127th of their largest
 * number; 0: int8 keeps this array in fp32. */
static void add_array(model *m, size_t count, size_t K)
{
    double *array = m->weights[m->arrays] = random_array(count, WEIGHT_BOUND);
    double *bytes = m->bytes[m->arrays] = zeros(count, sizeof *bytes);
    float *given = m->given[m->arrays++] = zeros(count, sizeof *given);
    for (size_t i = 0; i < count; i++) bytes[i] = given[i] = (float)array[i];
    for (size_t row = 0; K && row < count; row += K) {
        float largest = 0;
        for (size_t k = 0; k < K; k++) largest = fmaxf(largest, fabsf(given[row + k]));
        const float inverse = 127 / largest;
        for (size_t k = 0; k < K; k++) bytes[row + k] = rintf(given[row + k] * inverse) * (double)largest / 127;
    }
}

static void free_model(model *m)
{
    for (int i = 0; i < m->arrays; i++) free(m->weights[i]), free(m->bytes[i]), free(m->given[i]);
}

static model random_model(int cell, int V, int E, int H, int L)
{
    model m = {.cell = cell, .V = V, .E = E, .H = H, .L = L};
    const size_t rows = (size_t)gates_of[cell] * H;
    add_array(&m, (size_t)V * E, 0);
    for (int l = 0; l < L; l++) {
        add_array(&m, rows * (l ? H : E), l ? H : 0);
        add_array(&m, rows * H, H);
        add_array(&m, rows, 0);
        add_array(&m, rows, 0);
        if (cell == PEEPHOLE) add_array(&m, 3 * (size_t)H, 0);
    }
    add_array(&m, (size_t)V * H, H);
    add_array(&m, V, 0);
    return m;
}

/* h, or h rounded to multiples of 1/127 in `rounded`. */
static const double *read_h(const double *h, int H, int int8, double *rounded)
{
    if (!int8) return h;
    for (int u = 0; u < H; u++) rounded[u] = rint(h[u] * 127) / 127;
    return rounded;
}

/* Read one symbol: h and c are (L, H); logits (V). */
static void read_symbol(const model *m, int int8, int symbol, double *h, double *c, double *logits)
{
    const int H = m->H, rows = gates_of[m->cell] * H;
    const double *const *w = (const double *const *)(int8 ? m->bytes : m->weights) + 1;
    const double *input = m->weights[0] + (size_t)symbol * m->E;
    double below[64], own[64];
    for (int l = 0, K = m->E; l < m->L; l++, K = H) {
        double x[4 * 64];
        for (int row = 0; row < rows; row++) {
            x[row] = w[2][row];
            for (int k = 0; k < K; k++) x[row] += w[0][(size_t)row * K + k] * input[k];
        }
        step(m->cell, H, x, w[1], w[3], w[4], read_h(h + l * H, H, int8, own), h + l * H, c + l * H);
        input = read_h(h + l * H, H, int8, below);
        w += m->cell == PEEPHOLE ? 5 : 4;
    }
    for (int v = 0; v < m->V; v++) {
        logits[v] = w[1][v];
        for (int k = 0; k < H; k++) logits[v] += w[0][(size_t)v * H + k] * input[k];
    }
}

static uint64_t mix(uint64_t x) /* SplitMix64 */
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

/* The random number in [0, 1) of a stream's n-th symbol, as engine.h defines it. */
static double number(uint64_t seed, uint64_t stream, uint64_t n)
{
    const uint64_t gamma = 0x9E3779B97F4A7C15u;
    return (double)(mix(mix(mix(seed) + stream * gamma) + (n + 1) * gamma) >> 11) * 0x1p-53;
}

/* Whether `symbol` is the one that the number selects from the softmax of the logits, up to rounding. */
static int is_selected(const double *logits, int V, int symbol, double selected, double tolerance)
{
    double total = 0, before = 0;
    for (int v = 0; v < V; v++) total += exp(logits[v]);
    for (int v = 0; v < symbol; v++) before += exp(logits[v]);
    const double after = before + exp(logits[symbol]);
    return selected >= before / total - tolerance && selected <= after / total + tolerance;
}

static void check_engine(const model *m, int isa, int int8, int batch, int threads)
{
    enum { T = 9 };
    const char *set = engine_isa_name(isa);
    const int V = m->V, H = m->H, L = m->L, states = m->cell == GRU || m->cell == RNN ? 1 : 2;
    const double tolerance = int8 ? INT8_TOLERANCE : FP32_TOLERANCE;
    if (only_int8 && !int8) return;
    const size_t cells = (size_t)L * states * batch * H;
    int error;
    engine_options options = {m->cell, V, m->E, H, L, int8, batch, threads, isa, -1};
    engine *e = engine_create(&options, (const float *const *)m->given, &error);
    if (!e) exit(2);
    float *state = zeros(cells, sizeof *state), *logits = zeros((size_t)batch * V, sizeof *logits);
    int32_t *ids = zeros((size_t)(T + 1) * batch, sizeof *ids), *symbols = zeros((size_t)T * batch, sizeof *symbols);
    double *nats = zeros((size_t)T * batch, sizeof *nats), *h = zeros((size_t)L * H, 8), *c = zeros((size_t)L * H, 8);
    double *wanted = zeros(V, sizeof *wanted);
    uint64_t *streams = zeros(batch, sizeof *streams);
    int32_t *phases = zeros(batch, 4);
    for (int i = 0; i < (T + 1) * batch; i++) ids[i] = (int32_t)((uniform(1) + 1) / 2 * V) % V;
    for (int b = 0; b < batch; b++) streams[b] = 100 + b;

    if (engine_read(e, batch, T, ids, state, logits)) exit(2);
    for (int b = 0; b < batch; b++) {
        memset(h, 0, (size_t)L * H * 8), memset(c, 0, (size_t)L * H * 8);
        for (int t = 0; t < T; t++) read_symbol(m, int8, ids[t * batch + b], h, c, wanted);
        for (int v = 0; v < V; v++)
            expect(logits[b * V + v], wanted[v], tolerance, int8 ? "logits in int8" : "logits", set, m->cell);
        for (int l = 0; l < L; l++)
            for (int u = 0; u < H; u++) {
                const size_t at = ((size_t)l * states * batch + b) * H + u;
                expect(state[at], h[l * H + u], tolerance, int8 ? "h in int8" : "h", set, m->cell);
                if (states == 2)
                    expect(state[at + (size_t)batch * H], c[l * H + u], tolerance, int8 ? "c in int8" : "c", set,
                           m->cell);
            }
    }
    memset(state, 0, cells * sizeof *state);
    if (engine_score(e, batch, T, ids, state, nats, 0, NULL, NULL)) exit(2);
    for (int b = 0; b < batch; b++) {
        memset(h, 0, (size_t)L * H * 8), memset(c, 0, (size_t)L * H * 8);
        for (int t = 0; t < T; t++) {
            double total = 0;
            read_symbol(m, int8, ids[t * batch + b], h, c, wanted);
            for (int v = 0; v < V; v++) total += exp(wanted[v]);
            expect(nats[t * batch + b], log(total) - wanted[ids[(t + 1) * batch + b]], tolerance,
                   int8 ? "nats in int8" : "nats", set, m->cell);
        }
    }
    memset(state, 0, cells * sizeof *state);
    const engine_rule rule = {
        .temperature = 1, .top_p = 1, .typical = 1, .penalty = 1, .phases = phases, .limit = -1};
    if (engine_generate(e, batch, T, ids, state, &rule, 5, streams, 0, symbols)) exit(2);
    for (int b = 0; b < batch; b++) {
        memset(h, 0, (size_t)L * H * 8), memset(c, 0, (size_t)L * H * 8);
        for (int t = 0; t < T; t++) {
            read_symbol(m, int8, t ? symbols[(t - 1) * batch + b] : ids[b], h, c, wanted);
            const int is_right = is_selected(wanted, V, symbols[t * batch + b], number(5, streams[b], t), tolerance);
            expect(is_right, 1, 0, int8 ? "symbol in int8" : "symbol", set, m->cell);
        }
    }
    engine_destroy(e);
    free(state), free(logits), free(ids), free(symbols), free(nats), free(h), free(c), free(wanted), free(streams);
    free(phases);
}

static void check_engines(void)
{
    for (int isa = 0; engine_isa_name(isa); isa++) {
        if (!engine_isa_present(isa)) continue;
        printf("engine: %s\n", engine_isa_name(isa));
        for (int cell = LSTM; cell <= RNN; cell++)
            for (int size = 0; size < 2; size++) {
                model m = size ? random_model(cell, 70, 6, 50, 1) : random_model(cell, 19, 7, 21, 2);
                for (int run = few ? 4 : 0; run < 8; run++)
                    check_engine(&m, isa, run & 1, run & 2 ? 13 : 1, run & 4 ? 2 : 1);
                free_model(&m);
            }
    }
}

/* Threads that share a step: a model large enough for two to four. Of 13 sequences two threads compute some each, and
 * four share every product. The plainest set is first: clang's ThreadSanitizer sees no access of more than 16 bytes. */
static void check_shared_steps(void)
{
    model m = random_model(LSTM, 64, 64, 64, 6);
    int isa = 0;
    while (engine_isa_name(isa)) isa++;
    while (isa-- > 0)
        for (int int8 = 0; engine_isa_present(isa) && int8 < 2; int8++) {
            check_engine(&m, isa, int8, 1, 4);
            if (!few) check_engine(&m, isa, int8, 13, 4);
        }
    free_model(&m);
}

/* ---- the training kernels ---- */

enum { SOURCE, WEIGHT, BIAS, PEEPHOLES, H_BEGIN, C_BEGIN, PARAMETERS };

typedef struct {
    int cell, T, B, H, rows; /* rows of the source */
    const int64_t *index;
    const uint8_t *fresh;
    size_t size[PARAMETERS];
    double *parameter[PARAMETERS];
    double *d_output, *d_h, *d_c;
} scan;

/* The reference: outputs (T, B, H) if wanted, and the loss whose gradient is checked, Σ d_output·h + d_h·h_T + d_c·c_T.
 */
static double scan_loss(const scan *s, double *outputs)
{
    const int H = s->H, G = gates_of[s->cell], has_c = s->cell != GRU && s->cell != RNN;
    double loss = 0;
    for (int b = 0; b < s->B; b++) {
        double h[64], c[64] = {0}, x[4 * 64];
        memcpy(h, s->parameter[H_BEGIN] + b * H, H * 8);
        if (has_c) memcpy(c, s->parameter[C_BEGIN] + b * H, H * 8);
        for (int t = 0; t < s->T; t++) {
            const int64_t at = t * s->B + b, row = s->index ? s->index[at] : at;
            if (s->fresh && s->fresh[at]) memset(h, 0, H * 8), memset(c, 0, H * 8);
            memcpy(x, s->parameter[SOURCE] + row * G * H, (size_t)G * H * 8);
            for (int u = 0; s->cell == GRU && u < H; u++) x[2 * H + u] += s->parameter[BIAS][3 * H + u];
            step(s->cell, H, x, s->parameter[WEIGHT], s->parameter[BIAS], s->parameter[PEEPHOLES], h, h, c);
            for (int u = 0; u < H; u++) loss += s->d_output[at * H + u] * h[u];
            if (outputs) memcpy(outputs + at * H, h, H * 8);
        }
        for (int u = 0; u < H; u++) loss += s->d_h[b * H + u] * h[u] + (has_c ? s->d_c[b * H + u] * c[u] : 0);
    }
    return loss;
}

/* Largest deviation of a scan in bf16 from the equations with the same, rounded weights, relative to 1 + the absolute
 * value. The kernels round h and the gradients of the gates by up to 2^−9 of each, and 4 steps with these large weights
 * amplify that: the largest deviation measured was 0.03. A wrong index or gate changes some values by tenths. The test
 * of the products, and tests/training/test_precision.py for the scan, are exact to the rounding of float. */
#define BF16_TOLERANCE 0.08

/* A number rounded to bf16, to the nearest and to even in the middle: 8 significant bits. */
static double bf16(double x)
{
    int exponent;
    const double fraction = frexp(x, &exponent); /* 0.5 to 1 */
    return ldexp(nearbyint(ldexp(fraction, 8)), exponent - 8);
}

/* A copy in the kernels' own type. */
static void *typed(const double *array, size_t count, enum element element)
{
    void *copy = zeros(count, 8);
    for (size_t i = 0; i < count; i++) {
        if (element == DOUBLE) ((double *)copy)[i] = array[i];
        else ((float *)copy)[i] = (float)array[i];
    }
    return copy;
}

static double value(const void *array, size_t i, enum element element)
{
    return element == DOUBLE ? ((const double *)array)[i] : ((const float *)array)[i];
}

static void check_scan(int variant, enum element element, int cell, int H, int has_index, int threads)
{
    const char *set = recurrence_variant_name(variant);
    const int T = 4, B = 5, G = gates_of[cell], has_c = cell != GRU && cell != RNN, rows = has_index ? 6 : T * B;
    const size_t biases = cell == GRU ? 4 * H : G * H, all = (size_t)T * B;
    const double tolerance = element == DOUBLE ? 1e-7 : element == FLOAT ? 2e-4 : BF16_TOLERANCE;
    int64_t *index = zeros(all, sizeof *index);
    uint8_t *fresh = zeros(all, 1);
    for (size_t i = 0; i < all; i++) index[i] = (int64_t)(i * 5 % 6), fresh[i] = i % 7 == 3;
    scan s = {cell, T, B, H, rows, has_index ? index : NULL, has_index ? fresh : NULL, {0}, {0}, NULL, NULL, NULL};
    const size_t sizes[PARAMETERS] = {(size_t)rows * G * H,         (size_t)G * H * H, biases,
                                      cell == PEEPHOLE ? 3 * H : 0, (size_t)B * H,     has_c ? B * H : 0};
    for (int p = 0; p < PARAMETERS; p++) s.parameter[p] = random_array(s.size[p] = sizes[p], 0.5);
    for (size_t i = 0; element == BF16 && i < sizes[WEIGHT]; i++) s.parameter[WEIGHT][i] = bf16(s.parameter[WEIGHT][i]);
    s.d_output = random_array(all * H, 1), s.d_h = random_array(B * H, 1), s.d_c = random_array(B * H, 1);

    void *given[PARAMETERS];
    for (int p = 0; p < PARAMETERS; p++) given[p] = typed(s.parameter[p], sizes[p], element);
    void *h = zeros((all + B) * H, 8), *c = zeros((all + B) * H, 8), *h_begin = zeros(all * H, 8);
    void *c_begin = zeros(all * H, 8), *gates = zeros(all * G * H, 8), *candidate = zeros(all * H, 8);
    void *d_output = typed(s.d_output, all * H, element), *d_h = typed(s.d_h, B * H, element);
    void *d_c = typed(s.d_c, B * H, element), *d_bias = zeros(threads * biases, 8);
    void *d_peephole = zeros((size_t)threads * 3 * H, 8), *d_source = zeros(sizes[SOURCE], 8);
    void *packed = zeros((size_t)recurrence_scan_scratch(variant, element, cell, B, H), 8);
    const size_t bytes = (size_t)B * H * (element == DOUBLE ? 8 : 4);
    memcpy(h, given[H_BEGIN], bytes);
    if (has_c) memcpy(c, given[C_BEGIN], bytes);
    const scan_task task = {.cell = cell,
                            .threads = threads,
                            .T = T,
                            .B = B,
                            .H = H,
                            .source = given[SOURCE],
                            .index = s.index,
                            .fresh = s.fresh,
                            .weight = given[WEIGHT],
                            .bias = given[BIAS],
                            .peephole = cell == PEEPHOLE ? given[PEEPHOLES] : NULL,
                            .h = h,
                            .c = has_c ? c : NULL,
                            .h_begin = has_index ? h_begin : h,
                            .c_begin = !has_c      ? NULL
                                       : has_index ? c_begin
                                                   : c,
                            .gates = gates,
                            .candidate = cell == GRU ? candidate : NULL,
                            .packed = packed,
                            .d_output = d_output,
                            .d_h = d_h,
                            .d_c = has_c ? d_c : NULL,
                            .d_bias = d_bias,
                            .d_peephole = cell == PEEPHOLE ? d_peephole : NULL,
                            .d_source = has_index ? d_source : NULL};
    double *outputs = zeros(all * H, 8);
    scan_loss(&s, outputs);
    recurrence_forward(&task, variant, element, NULL);
    for (size_t i = 0; i < all * H; i++)
        expect(value(h, B * H + i, element), outputs[i], tolerance, "scan's h", set, cell);

    recurrence_backward(&task, variant, element, NULL);
    void *d_weight = zeros(sizes[WEIGHT], 8), *scratch = zeros((size_t)threads * recurrence_product_scratch(), 8);
    const product_task product = {.a = gates,
                                  .b = task.h_begin,
                                  .c = d_weight,
                                  .scratch = scratch,
                                  .M = G * H,
                                  .N = H,
                                  .K = T * B,
                                  .a_row = 1,
                                  .a_col = G * H,
                                  .b_row = H,
                                  .b_col = 1,
                                  .c_row = H,
                                  .threads = threads};
    recurrence_product(&product, variant, element, NULL);
    for (int p = 0; p < PARAMETERS; p++)
        for (size_t n = 0; n < sizes[p] && n < (few ? 4 : 60); n++) {
            const size_t i = n * 7919 % sizes[p], unit = i % (G * H);
            const double saved = s.parameter[p][i], distance = 1e-4;
            s.parameter[p][i] = saved + distance;
            const double above = scan_loss(&s, NULL);
            s.parameter[p][i] = saved - distance;
            const double slope = (above - scan_loss(&s, NULL)) / (2 * distance);
            s.parameter[p][i] = saved;
            double got = 0;
            if (p == SOURCE && has_index) got = value(d_source, i, element);
            else if (p == SOURCE && cell == GRU && unit >= 2 * (size_t)H)
                got = value(candidate, i / (G * H) * H + unit - 2 * H, element);
            else if (p == SOURCE) got = value(gates, i, element);
            else if (p == WEIGHT) got = value(d_weight, i, element);
            else if (p == H_BEGIN) got = value(d_h, i, element);
            else if (p == C_BEGIN) got = value(d_c, i, element);
            else
                for (int k = 0; k < threads; k++)
                    got += p == BIAS ? value(d_bias, k * biases + i, element)
                                     : value(d_peephole, (size_t)k * 3 * H + i, element);
            expect(got, slope, tolerance, "gradient", set, cell);
        }
    for (int p = 0; p < PARAMETERS; p++) free(s.parameter[p]), free(given[p]);
    void *arrays[] = {index,   fresh,      s.d_output, s.d_h,     s.d_c,    h,        c,
                      h_begin, c_begin,    gates,      candidate, d_output, d_h,      d_c,
                      d_bias,  d_peephole, d_source,   packed,    outputs,  d_weight, scratch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* C += A · B for every memory layout, with edges on all sides and an odd K. In BF16 the reference is the sum in double of
 * the products of rounded numbers, so that the deviation is the rounding error of 67 additions in float. */
static void check_product(int variant, enum element element)
{
    enum { M = 19, K = 67, N = 73 };
    double *left = random_array(M * K, 1), *right = random_array(K * N, 1);
    void *scratch = zeros((size_t)3 * recurrence_product_scratch(), 8);
    for (int layout = 0; layout < 4; layout++) {
        double *a = zeros(M * K, 8), *b = zeros(K * N, 8), *one = zeros(M * N, 8);
        const int64_t a_row = layout & 1 ? 1 : K, a_col = layout & 1 ? M : 1;
        const int64_t b_row = layout & 2 ? 1 : N, b_col = layout & 2 ? K : 1;
        for (int i = 0; i < M; i++)
            for (int k = 0; k < K; k++) a[i * a_row + k * a_col] = left[i * K + k];
        for (int k = 0; k < K; k++)
            for (int j = 0; j < N; j++) b[k * b_row + j * b_col] = right[k * N + j];
        for (int i = 0; i < M * N; i++) one[i] = 1;
        void *given_a = typed(a, M * K, element), *given_b = typed(b, K * N, element), *c = typed(one, M * N, element);
        recurrence_product(&(product_task){given_a, given_b, c, scratch, M, N, K, a_row, a_col, b_row, b_col, N, 1, 3},
                           variant, element, NULL);
        for (int i = 0; i < M * N; i++) {
            double sum = 1;
            for (int k = 0; k < K; k++) {
                const double x = left[i / N * K + k], y = right[k * N + i % N];
                sum += element == BF16 ? bf16(x) * bf16(y) : x * y;
            }
            expect(value(c, i, element), sum, element == DOUBLE ? 1e-13 : 5e-6,
                   element == BF16 ? "product in bf16" : "product", recurrence_variant_name(variant), -1);
        }
        free(a), free(b), free(one), free(given_a), free(given_b), free(c);
    }
    free(left), free(right), free(scratch);
}

/* More threads than most machines have processors: each must run, and none may write outside its own scratch. */
static void check_many_threads(void)
{
    enum { M = 400, K = 9, N = 8, THREADS = 300 };
    double *a = random_array(M * K, 1), *b = random_array(K * N, 1), *c = zeros(M * N, 8);
    double *scratch = zeros((size_t)THREADS * recurrence_product_scratch(), 8);
    const product_task task = {.a = a,
                               .b = b,
                               .c = c,
                               .scratch = scratch,
                               .M = M,
                               .N = N,
                               .K = K,
                               .a_row = K,
                               .a_col = 1,
                               .b_row = N,
                               .b_col = 1,
                               .c_row = N,
                               .threads = THREADS};
    recurrence_product(&task, 0, DOUBLE, NULL);
    for (int i = 0; i < M * N; i++) {
        double sum = 0;
        for (int k = 0; k < K; k++) sum += a[i / N * K + k] * b[k * N + i % N];
        expect(c[i], sum, 1e-12, "product of 300 threads", "plain", -1);
    }
    free(a), free(b), free(c), free(scratch);
}

static void check_drop(int variant)
{
    enum { N = 20000 };
    float *x = zeros(N, 4), *y = zeros(N, 4);
    for (int i = 0; i < N; i++) x[i] = 1;
    int dropped = 0;
    recurrence_drop(&(drop_task){x, y, N, 3, N, N, 0, 0.25, 1, 2}, variant, FLOAT, NULL);
    for (int i = 0; i < N; i++) {
        dropped += y[i] == 0;
        expect(y[i], y[i] == 0 ? 0 : 1 / 0.75, 1e-6, "dropout", recurrence_variant_name(variant), -1);
    }
    expect(dropped / (double)N, 0.25, 0.01, "share dropped", recurrence_variant_name(variant), -1);
    free(x), free(y);
}

static void check_recurrence(void)
{
    for (int variant = 0; variant < recurrence_variants(); variant++) {
        printf("recurrence: %s\n", recurrence_variant_name(variant));
        check_drop(variant);
        for (enum element element = FLOAT; element <= BF16; element++) {
            check_product(variant, element);
            for (int cell = LSTM; cell <= RNN; cell++)
                for (int run = 0; run < 4; run++)
                    check_scan(variant, element, cell, run & 1 ? 37 : 11, run & 2 ? 1 : 0, run & 2 ? 1 : 3);
        }
    }
}

int main(int count, char **words)
{
    for (int i = 1; i < count; i++) few |= !strcmp(words[i], "few"), only_int8 |= !strcmp(words[i], "int8");
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (charlstm_abi() != CHARLSTM_ABI) return 2;
    check_shared_steps();
    check_engines();
    if (!only_int8) check_recurrence();
    check_many_threads();
    printf("%ld values are right\n", compared);
    return 0;
}
