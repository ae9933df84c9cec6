/* The loops of recurrence.c for one element type and one instruction set.
 * Define before including: ISA and TARGET (simd.h), REAL with its EXP and EACH_UNIT, VB (bytes per vector), MR (rows
 * per tile).
 *
 * Letters: B batch, T time, H hidden, G gates; u the first unit of a tile, j a unit in it. A tile is MR rows by NR
 * columns of a product; its sums are kept in registers.
 */

#define NAME(base) JOIN(JOIN(base, REAL), ISA)
#define NV         2 /* vectors per row of a tile */
#define LANES      (VB / (int)sizeof(REAL))
#define NR         (NV * LANES) /* columns of a tile */
#define VECTOR     NAME(vector)

typedef REAL VECTOR __attribute__((vector_size(VB), aligned(sizeof(REAL))));

INLINE REAL NAME(sigmoid)(REAL x) { return 1 / (1 + EXP(-x)); }

/* Computed from e^(−2|x|), which cannot overflow. */
INLINE REAL NAME(tanh_)(REAL x)
{
    REAL e = EXP(-2 * (x < 0 ? -x : x));
    REAL y = (1 - e) / (1 + e);
    return x < 0 ? -y : y;
}

/* An array of the task from an element on; NULL if the task does not have the array. */
INLINE REAL *NAME(from)(void *array, int64_t element) { return array ? (REAL *)array + element : NULL; }
INLINE const REAL *NAME(from_const)(const void *array, int64_t element)
{
    return array ? (const REAL *)array + element : NULL;
}

#define FROM       NAME(from)
#define FROM_CONST NAME(from_const)
#define SIGMOID    NAME(sigmoid)
#define TANH       NAME(tanh_)

/* ---- Products: C (m, NR) = or += A (m, K) · B (K, NR), B packed. ---- */

INLINE void NAME(tile_of)(const int m, int64_t K, const REAL *a, int64_t a_row, int64_t a_col, const REAL *b, REAL *c,
                          int64_t c_row, int add)
{
    VECTOR sum[MR][NV];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) sum[i][j] = add ? *(const VECTOR *)(c + i * c_row + j * LANES) : (VECTOR){0};
    for (int64_t k = 0; k < K; k++) {
        VECTOR row[NV];
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) row[j] = *(const VECTOR *)(b + k * NR + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            REAL factor = a[i * a_row + k * a_col];
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) sum[i][j] += factor * row[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) *(VECTOR *)(c + i * c_row + j * LANES) = sum[i][j];
}

/* Compute the tallest tile of at most `rows` rows; return its height. */
static TARGET int NAME(tile)(int64_t rows, int64_t K, const REAL *a, int64_t a_row, int64_t a_col, const REAL *b,
                             REAL *c, int64_t c_row, int add)
{
    if (rows >= MR) return NAME(tile_of)(MR, K, a, a_row, a_col, b, c, c_row, add), MR;
#if MR > 4
    if (rows >= 4) return NAME(tile_of)(4, K, a, a_row, a_col, b, c, c_row, add), 4;
#endif
    if (rows >= 2) return NAME(tile_of)(2, K, a, a_row, a_col, b, c, c_row, add), 2;
    return NAME(tile_of)(1, K, a, a_row, a_col, b, c, c_row, add), 1;
}

/* The same for a tile at the edge of C, with only n columns. */
static TARGET int NAME(tile_edge)(int64_t rows, int64_t K, const REAL *a, int64_t a_row, int64_t a_col, const REAL *b,
                                  REAL *c, int64_t c_row, int add, int64_t n)
{
    REAL full[MR * NR] __attribute__((aligned(64)));
    int m = NAME(tile)(rows, K, a, a_row, a_col, b, full, NR, 0);
    for (int i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * c_row + j] = full[i * NR + j] + (add ? c[i * c_row + j] : 0);
    return m;
}

/* Copy columns [0, n) of B (K, n), element b[k * b_row + j * b_col], into one panel (K, NR) padded with zeros. */
static TARGET void NAME(pack_panel)(REAL *panel, int64_t K, int64_t n, const REAL *b, int64_t b_row, int64_t b_col)
{
    for (int64_t k = 0; k < K; k++) {
        for (int64_t j = 0; j < n; j++) panel[k * NR + j] = b[k * b_row + j * b_col];
        for (int64_t j = n; j < NR; j++) panel[k * NR + j] = 0;
    }
}

static TARGET void NAME(product)(const void *argument, int64_t thread)
{
    const product_task *p = argument;
    int64_t m_from = 0, m_to = p->M, n_from = 0, n_to = p->N;
    if (p->M >= p->N) share(p->M, MR, thread, p->threads, &m_from, &m_to);
    else share(p->N, NR, thread, p->threads, &n_from, &n_to);
    if (m_from == m_to || n_from == n_to) return;
    REAL *packed_b = (REAL *)p->scratch + thread * DEPTH * (WIDTH + 32), *packed_a = packed_b + DEPTH * WIDTH;
    for (int64_t n0 = n_from; n0 < n_to; n0 += WIDTH)
        for (int64_t k0 = 0; k0 < p->K; k0 += DEPTH) {
            int64_t width = min64(WIDTH, n_to - n0), depth = min64(DEPTH, p->K - k0);
            int add = k0 > 0 || p->accumulate;
            for (int64_t j = 0; j < width; j += NR) NAME(pack_panel)
            (packed_b + j * depth, depth, min64(NR, width - j),
             (const REAL *)p->b + k0 * p->b_row + (n0 + j) * p->b_col, p->b_row, p->b_col);
            for (int64_t i = m_from, height; i < m_to; i += height) {
                height = min64(MR, m_to - i);
                const REAL *a = (const REAL *)p->a + i * p->a_row + k0 * p->a_col;
                int64_t a_row = p->a_row, a_col = p->a_col;
                if (a_col != 1) { /* each step would read another cache line: copy the rows once for all panels */
                    for (int64_t k = 0; k < depth; k++)
                        for (int64_t r = 0; r < height; r++) packed_a[k * MR + r] = a[k * a_col + r * a_row];
                    a = packed_a, a_row = 1, a_col = MR;
                }
                for (int64_t r = 0; r < height;) {
                    int64_t done = 0;
                    for (int64_t j = 0; j < width; j += NR) {
                        REAL *c = (REAL *)p->c + (i + r) * p->c_row + n0 + j;
                        const REAL *b = packed_b + j * depth;
                        done = width - j >= NR
                                   ? NAME(tile)(height - r, depth, a + r * a_row, a_row, a_col, b, c, p->c_row, add)
                                   : NAME(tile_edge)(height - r, depth, a + r * a_row, a_row, a_col, b, c, p->c_row,
                                                     add, width - j);
                    }
                    r += done;
                }
            }
        }
}

/* ---- Forward: for each step and block of units, compute the products of the gates, one tile each, then σ and tanh
 * while the sums are in the cache. ---- */

/* Pack weight_hh in panels (H, NR): for each block of NR units, one panel per gate. */
static TARGET void NAME(pack_forward)(const void *argument, int64_t thread)
{
    const scan_task *s = argument;
    int64_t H = s->H, G = gate_count(s->cell), from, to;
    share(H, NR, thread, s->threads, &from, &to);
    for (int64_t u = from; u < to; u += NR)
        for (int64_t g = 0; g < G; g++) NAME(pack_panel)
    ((REAL *)s->packed + (u * G + g * NR) * H, H, min64(NR, H - u), (const REAL *)s->weight + (g * H + u) * H, 1, H);
}

/* Compute one row of a tile: n units from u on, of step t and batch row b. z (G, ·) is weight_hh · h, with its gates
 * `stride` elements apart. */
INLINE void NAME(cell_forward)(const scan_task *s, int64_t t, int64_t b, int64_t u, int64_t n, const REAL *restrict z,
                               int64_t stride)
{
    const int64_t H = s->H, G = gate_count(s->cell), at = (t * s->B + b) * H + u, next = at + s->B * H;
    const REAL *restrict x = (const REAL *)s->source + (s->index ? s->index[t * s->B + b] : t * s->B + b) * G * H + u;
    const REAL *restrict bias = FROM_CONST(s->bias, u), *restrict p = FROM_CONST(s->peephole, u);
    REAL *restrict y = (REAL *)s->gates + (t * s->B + b) * G * H + u;
    const REAL *restrict c = FROM_CONST(s->c_begin, at), *restrict h = FROM_CONST(s->h_begin, at);
    REAL *restrict c_next = FROM(s->c, next), *restrict h_next = FROM(s->h, next);
#define PRE(g) (x[(g)*H + j] + bias[(g)*H + j] + z[(g)*stride + j])
    switch (s->cell) {
        case LSTM:
            EACH_UNIT
            for (int64_t j = 0; j < n; j++) {
                REAL i_ = SIGMOID(PRE(0)), f_ = SIGMOID(PRE(1)), g_ = TANH(PRE(2)), o_ = SIGMOID(PRE(3));
                REAL c_ = f_ * c[j] + i_ * g_;
                y[j] = i_, y[H + j] = f_, y[2 * H + j] = g_, y[3 * H + j] = o_;
                c_next[j] = c_, h_next[j] = o_ * TANH(c_);
            }
            break;
        case PEEPHOLE:
            EACH_UNIT
            for (int64_t j = 0; j < n; j++) {
                REAL i_ = SIGMOID(PRE(0) + p[j] * c[j]), f_ = SIGMOID(PRE(1) + p[H + j] * c[j]), g_ = TANH(PRE(2));
                REAL c_ = f_ * c[j] + i_ * g_, o_ = SIGMOID(PRE(3) + p[2 * H + j] * c_);
                y[j] = i_, y[H + j] = f_, y[2 * H + j] = g_, y[3 * H + j] = o_;
                c_next[j] = c_, h_next[j] = o_ * TANH(c_);
            }
            break;
        case COUPLED:
            EACH_UNIT
            for (int64_t j = 0; j < n; j++) {
                REAL f_ = SIGMOID(PRE(0)), g_ = TANH(PRE(1)), o_ = SIGMOID(PRE(2));
                REAL c_ = f_ * c[j] + (1 - f_) * g_;
                y[j] = f_, y[H + j] = g_, y[2 * H + j] = o_;
                c_next[j] = c_, h_next[j] = o_ * TANH(c_);
            }
            break;
        case GRU: {
            REAL *restrict q = (REAL *)s->candidate + at;
            EACH_UNIT
            for (int64_t j = 0; j < n; j++) {
                REAL r_ = SIGMOID(PRE(0)), z_ = SIGMOID(PRE(1)), q_ = bias[2 * H + j] + z[2 * stride + j];
                REAL n_ = TANH(x[2 * H + j] + bias[3 * H + j] + r_ * q_);
                y[j] = r_, y[H + j] = z_, y[2 * H + j] = n_, q[j] = q_;
                h_next[j] = (1 - z_) * n_ + z_ * h[j];
            }
            break;
        }
        default:
            EACH_UNIT
            for (int64_t j = 0; j < n; j++) y[j] = h_next[j] = TANH(PRE(0));
    }
#undef PRE
}

/* Set the state before step t for rows [from, to): the state after the previous step, or zeros. */
static TARGET void NAME(begin)(const scan_task *s, int64_t t, int64_t from, int64_t to)
{
    const int64_t H = s->H;
    for (int64_t b = from; b < to; b++) {
        const int64_t at = (t * s->B + b) * H;
        const size_t bytes = (size_t)H * sizeof(REAL);
        REAL *h = FROM(s->h_begin, at), *c = FROM(s->c_begin, at);
        if (s->fresh[t * s->B + b]) {
            memset(h, 0, bytes);
            if (s->c) memset(c, 0, bytes);
        } else {
            memcpy(h, (const REAL *)s->h + at, bytes);
            if (s->c) memcpy(c, (const REAL *)s->c + at, bytes);
        }
    }
}

static TARGET void NAME(forward)(const void *argument, int64_t thread)
{
    const scan_task *s = argument;
    const int64_t B = s->B, H = s->H, G = gate_count(s->cell);
    int64_t from, to;
    share(B, 1, thread, s->threads, &from, &to);
    REAL z[4 * MR * NR] __attribute__((aligned(64)));
    for (int64_t t = 0; t < s->T; t++) {
        if (s->fresh) NAME(begin)(s, t, from, to);
        for (int64_t u = 0; u < H; u += NR)
            for (int64_t b = from, height = 0; b < to; b += height) {
                const REAL *h = (const REAL *)s->h_begin + (t * B + b) * H,
                           *panel = (const REAL *)s->packed + u * G * H;
                for (int64_t g = 0; g < G; g++)
                    height = NAME(tile)(to - b, H, h, H, 1, panel + g * NR * H, z + g * MR * NR, NR, 0);
                for (int64_t i = 0; i < height; i++) {
                    if (H - u >= NR) NAME(cell_forward)(s, t, b + i, u, NR, z + i * NR, MR * NR);
                    else NAME(cell_forward)(s, t, b + i, u, H - u, z + i * NR, MR * NR);
                }
            }
    }
}

/* ---- Backward: for each step from the last, compute the gradients of the gates row by row, then their product with
 * weight_hh. ---- */

/* Pack weight_hh in panels (G·H, NR) of NR columns. */
static TARGET void NAME(pack_backward)(const void *argument, int64_t thread)
{
    const scan_task *s = argument;
    int64_t H = s->H, K = gate_count(s->cell) * H, from, to;
    share(H, NR, thread, s->threads, &from, &to);
    for (int64_t u = from; u < to; u += NR)
        NAME(pack_panel)((REAL *)s->packed + u * K, K, min64(NR, H - u), (const REAL *)s->weight + u, H, 1);
}

/* Compute the gradient of the gates of one row of step t from the gradient of its h and c. d_c becomes the gradient of
 * the previous c. */
static TARGET void NAME(cell_backward)(const scan_task *s, int64_t t, int64_t b, REAL *restrict d_bias,
                                       REAL *restrict d_p)
{
    const int64_t H = s->H, G = gate_count(s->cell), at = (t * s->B + b) * H, next = at + s->B * H;
    const REAL *restrict p = s->peephole, *restrict d_out = (const REAL *)s->d_output + at;
    const REAL *restrict c = FROM_CONST(s->c_begin, at), *restrict c_next = FROM_CONST(s->c, next);
    const REAL *restrict h = FROM_CONST(s->h_begin, at);
    REAL *restrict y = (REAL *)s->gates + (t * s->B + b) * G * H;
    REAL *restrict d_h = FROM(s->d_h, b * H), *restrict d_c = FROM(s->d_c, b * H);
    switch (s->cell) {
        case LSTM:
            EACH_UNIT
            for (int64_t j = 0; j < H; j++) {
                REAL i_ = y[j], f_ = y[H + j], g_ = y[2 * H + j], o_ = y[3 * H + j], t_ = TANH(c_next[j]),
                     dh = d_out[j] + d_h[j];
                REAL dc = d_c[j] + dh * o_ * (1 - t_ * t_);
                REAL di = dc * g_ * i_ * (1 - i_), df = dc * c[j] * f_ * (1 - f_), dg = dc * i_ * (1 - g_ * g_);
                REAL dz = dh * t_ * o_ * (1 - o_);
                y[j] = di, y[H + j] = df, y[2 * H + j] = dg, y[3 * H + j] = dz, d_c[j] = dc * f_;
                d_bias[j] += di, d_bias[H + j] += df, d_bias[2 * H + j] += dg, d_bias[3 * H + j] += dz;
            }
            break;
        case PEEPHOLE:
            EACH_UNIT
            for (int64_t j = 0; j < H; j++) {
                REAL i_ = y[j], f_ = y[H + j], g_ = y[2 * H + j], o_ = y[3 * H + j], t_ = TANH(c_next[j]),
                     dh = d_out[j] + d_h[j];
                REAL dz = dh * t_ * o_ * (1 - o_), dc = d_c[j] + dh * o_ * (1 - t_ * t_) + dz * p[2 * H + j];
                REAL di = dc * g_ * i_ * (1 - i_), df = dc * c[j] * f_ * (1 - f_), dg = dc * i_ * (1 - g_ * g_);
                y[j] = di, y[H + j] = df, y[2 * H + j] = dg, y[3 * H + j] = dz;
                d_c[j] = dc * f_ + di * p[j] + df * p[H + j];
                d_bias[j] += di, d_bias[H + j] += df, d_bias[2 * H + j] += dg, d_bias[3 * H + j] += dz;
                d_p[j] += di * c[j], d_p[H + j] += df * c[j], d_p[2 * H + j] += dz * c_next[j];
            }
            break;
        case COUPLED:
            EACH_UNIT
            for (int64_t j = 0; j < H; j++) {
                REAL f_ = y[j], g_ = y[H + j], o_ = y[2 * H + j], t_ = TANH(c_next[j]), dh = d_out[j] + d_h[j];
                REAL dc = d_c[j] + dh * o_ * (1 - t_ * t_);
                REAL df = dc * (c[j] - g_) * f_ * (1 - f_), dg = dc * (1 - f_) * (1 - g_ * g_),
                     dz = dh * t_ * o_ * (1 - o_);
                y[j] = df, y[H + j] = dg, y[2 * H + j] = dz, d_c[j] = dc * f_;
                d_bias[j] += df, d_bias[H + j] += dg, d_bias[2 * H + j] += dz;
            }
            break;
        case GRU: {
            REAL *restrict q = (REAL *)s->candidate + at;
            EACH_UNIT
            for (int64_t j = 0; j < H; j++) {
                REAL r_ = y[j], z_ = y[H + j], n_ = y[2 * H + j], dh = d_out[j] + d_h[j];
                REAL dn = dh * (1 - z_) * (1 - n_ * n_), dz = dh * (h[j] - n_) * z_ * (1 - z_),
                     dr = dn * q[j] * r_ * (1 - r_);
                y[j] = dr, y[H + j] = dz, y[2 * H + j] = dn * r_, q[j] = dn, d_h[j] = dh * z_;
                d_bias[j] += dr, d_bias[H + j] += dz, d_bias[2 * H + j] += dn * r_, d_bias[3 * H + j] += dn;
            }
            break;
        }
        default:
            EACH_UNIT
            for (int64_t j = 0; j < H; j++) {
                REAL dz = (d_out[j] + d_h[j]) * (1 - y[j] * y[j]);
                y[j] = dz, d_bias[j] += dz;
            }
    }
}

static TARGET void NAME(backward)(const void *argument, int64_t thread)
{
    const scan_task *s = argument;
    const int64_t B = s->B, H = s->H, K = gate_count(s->cell) * H, biases = s->cell == GRU ? 4 * H : K;
    const int add = s->cell == GRU; /* the next h also depends on this h directly */
    int64_t from, to;
    share(B, 1, thread, s->threads, &from, &to);
    for (int64_t t = s->T - 1; t >= 0; t--) {
        for (int64_t b = from; b < to; b++)
            NAME(cell_backward)(s, t, b, FROM(s->d_bias, thread * biases), FROM(s->d_peephole, thread * 3 * H));
        for (int64_t u = 0; u < H; u += NR)
            for (int64_t b = from, height; b < to; b += height) {
                const REAL *dz = (const REAL *)s->gates + (t * B + b) * K, *panel = (const REAL *)s->packed + u * K;
                REAL *d_h = (REAL *)s->d_h + b * H + u;
                height = H - u >= NR ? NAME(tile)(to - b, K, dz, K, 1, panel, d_h, H, add)
                                     : NAME(tile_edge)(to - b, K, dz, K, 1, panel, d_h, H, add, H - u);
            }
        for (int64_t b = from; s->fresh && b < to; b++) { /* no gradient passes to the step before a fresh step */
            if (!s->fresh[t * B + b]) continue;
            memset((REAL *)s->d_h + b * H, 0, (size_t)H * sizeof(REAL));
            if (s->d_c) memset((REAL *)s->d_c + b * H, 0, (size_t)H * sizeof(REAL));
        }
    }
}

/* d_source[index] += the gradient of each step's gates; each thread adds some columns of every row. */
static TARGET void NAME(add_rows)(const void *argument, int64_t thread)
{
    const scan_task *s = argument;
    const int64_t H = s->H, K = gate_count(s->cell) * H;
    int64_t from, to;
    share(H, 16, thread, s->threads, &from, &to);
    for (int64_t row = 0; row < s->T * s->B; row++)
        for (int64_t g = 0; g < K / H; g++) {
            REAL *restrict sum = (REAL *)s->d_source + s->index[row] * K + g * H;
            const REAL *restrict dz = s->cell == GRU && g == 2 ? (const REAL *)s->candidate + row * H
                                                               : (const REAL *)s->gates + row * K + g * H;
            for (int64_t j = from; j < to; j++) sum[j] += dz[j];
        }
}

/* ---- Dropout: number k of the whole array is kept if a hash of k and the keys is at least `share` of its range. ---- */

static TARGET void NAME(drop)(const void *argument, int64_t thread)
{
    const drop_task *d = argument;
    const REAL *restrict x = d->x, scale = (REAL)(1 / (1 - d->share));
    REAL *restrict y = d->y;
    const uint32_t limit = (uint32_t)(d->share * 4294967296.0), key = d->key, second_key = d->second_key;
    int64_t from, to;
    share(d->n, 64, thread, d->threads, &from, &to);
    while (from < to) {
        const int64_t row = from / d->row, end = (row + 1) * d->row < to ? (row + 1) * d->row : to;
        const uint32_t shifted = key + (uint32_t)(d->first + row * (d->stride - d->row));
        for (int64_t k = from; k < end; k++) {
            uint32_t hash = mix(mix((uint32_t)k + shifted) ^ second_key);
            y[k] = hash >= limit ? x[k] * scale : 0;
        }
        from = end;
    }
}

#undef NV
#undef LANES
#undef NR
#undef VECTOR
#undef SIGMOID
#undef TANH
#undef FROM
#undef FROM_CONST
#undef NAME
