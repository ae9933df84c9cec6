/* Allocate a handle, and pack the weights in the order in which the products read them.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, K columns of a matrix. A group is 16 rows of a matrix; a block
 * is the rows that one product call computes: the G gates of 16 units, or up to 64 rows of the projection.
 */
#include "engine_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TABLE_BYTES                                                                                                    \
    (8 << 20) /* largest table of the first layer; a larger one costs more memory and time at the start than it saves  \
               */

const cell_layout cell_layouts[] = {
    [LSTM] = {4, 2, {0, 1, 2, 3}, {0, 1, 2, 3}},
    [PEEPHOLE] = {4, 2, {0, 1, 2, 3}, {0, 1, 2, 3}},
    [COUPLED] = {3, 2, {0, 1, 2}, {0, 1, 2}},
    [GRU] = {3, 1, {2, 0, 1}, {0, 1, 2}},
    [RNN] = {1, 1, {0}, {0}},
};

/* ---- allocation: the same functions run twice, first to add up the sizes, then to assign the memory ---- */

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
    e->may = take(a, (uint64_t)threads * (uint64_t)(e->padded + GROUP));
    e->phases = take(a, (uint64_t)o->batch * 4);
    e->weights = take(a, (uint64_t)(o->batch > threads ? o->batch : threads) * e->padded * 8);
}

/* Copy `count` ≤ 16 rows, stored as (count, K), into slot r of a block. */
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

/* Add up the biases of every unit and slot, [block][slot][lane]. */
static void pack_bias(const engine *e, float *bias, const float *input, const float *hidden)
{
    const int H = e->options.hidden, gru = e->options.cell == GRU;
    for (int unit = 0; unit < H; unit++)
        for (int r = 0; r < e->gates; r++) {
            float *z = bias + (size_t)(unit / GROUP) * Z_STRIDE + unit % GROUP;
            z[r * GROUP] += input[cell_layouts[e->options.cell].input[r] * H + unit];
            z[(r + gru) * GROUP] += hidden[cell_layouts[e->options.cell].hidden[r] * H + unit];
        }
}

/* Compute the first layer's bias and input product for every symbol, with the product of the kernels and a packed
 * matrix that is freed afterwards. */
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
    pack_gates(e, &m, weight, cell_layouts[o->cell].input);
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
        if (y->input.w) pack_gates(e, &y->input, input, cell_layouts[o->cell].input);
        pack_gates(e, &y->hidden, hidden, cell_layouts[o->cell].hidden);
        pack_bias(e, y->bias, input_bias, hidden_bias);
        if (o->cell == PEEPHOLE) {
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

engine *engine_allocate(const engine_options *o, int isa, const float *const *weights)
{
    engine plan = {.options = *o};
    plan.options.isa = isa;
    plan.kernels = instruction_sets[isa].kernels;
    plan.gates = cell_layouts[o->cell].gates;
    plan.states = cell_layouts[o->cell].states;
    plan.width = (o->hidden + GROUP - 1) / GROUP * GROUP;
    plan.padded = (o->vocabulary + GROUP - 1) / GROUP * GROUP;
    arena a = {0};
    take(&a, sizeof plan);
    lay(&a, &plan);
    if (a.used > SIZE_MAX / 2) return NULL;
    plan.memory =
        calloc(1, (size_t)a.used +
                      64); /* the system allocates a page at its first use: those of a large batch may never be used */
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
    return e;
}
