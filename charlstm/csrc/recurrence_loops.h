/* The loops of recurrence.c for one element type and one instruction set.
 * Define before including: ISA and TARGET (simd.h), VB (bytes per vector), MR (rows per tile), and for the element type
 *
 *     ELEMENT                      its name, a suffix of every name in this file: float, double or bf16
 *     REAL with EXP and EACH_UNIT  the type of all arrays, sums and states; float for bf16
 *     ROUNDS                       whether a product rounds its operands to bf16
 *     PAIR                         numbers of one row of A, or of one column of B, in each element of a packed operand
 *     OPERAND                      type of that element: REAL, which holds one number, or uint32_t, which holds two bf16
 *
 * Letters: B batch, T time, H hidden, G gates; u the first unit of a tile, j a unit in it. A tile is MR rows by NR
 * columns of a product; its sums are kept in registers.
 */

#define NAME(base) JOIN(JOIN(base, ELEMENT), ISA)
#define NV         2 /* vectors per row of a tile */
#define LANES      (VB / (int)sizeof(REAL))
#define NR         (NV * LANES) /* columns of a tile */
#define VECTOR     NAME(vector)

#define PACKED(K) (((K) + PAIR - 1) / PAIR) /* elements of a packed operand that hold K numbers */

typedef REAL VECTOR __attribute__((vector_size(VB), aligned(sizeof(REAL))));

#if PAIR == 1
#define OPERANDS                       VECTOR
#define MULTIPLY_ADD(sum, factor, row) ((sum) += (factor) * (row))
#else
#define OPERANDS                       NAME(operands)
#define MULTIPLY_ADD(sum, factor, row)                                                                                 \
    ((sum) = (VECTOR)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)_mm512_set1_epi32((int)(factor)), (__m512bh)(row)))
typedef uint32_t OPERANDS __attribute__((vector_size(VB), aligned(4)));
#endif

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

/* ---- Products: C (m, NR) = or += A (m, K) · B (K, NR), B packed. In a tile, K counts elements of the operands, and so
 * do a_row and a_col. ---- */

INLINE void NAME(tile_of)(const int m, int64_t K, const OPERAND *a, int64_t a_row, int64_t a_col, const OPERAND *b, REAL *c,
                          int64_t c_row, int add)
{
    VECTOR sum[MR][NV];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) sum[i][j] = add ? *(const VECTOR *)(c + i * c_row + j * LANES) : (VECTOR){0};
    for (int64_t k = 0; k < K; k++) {
        OPERANDS row[NV];
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) row[j] = *(const OPERANDS *)(b + k * NR + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            OPERAND factor = a[i * a_row + k * a_col];
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) MULTIPLY_ADD(sum[i][j], factor, row[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) *(VECTOR *)(c + i * c_row + j * LANES) = sum[i][j];
}

/* Compute the tallest tile of at most `rows` rows; return its height. */
static TARGET int NAME(tile)(int64_t rows, int64_t K, const OPERAND *a, int64_t a_row, int64_t a_col, const OPERAND *b,
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
static TARGET int NAME(tile_edge)(int64_t rows, int64_t K, const OPERAND *a, int64_t a_row, int64_t a_col, const OPERAND *b,
                                  REAL *c, int64_t c_row, int add, int64_t n)
{
    REAL full[MR * NR] __attribute__((aligned(64)));
    int m = NAME(tile)(rows, K, a, a_row, a_col, b, full, NR, 0);
    for (int i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * c_row + j] = full[i * NR + j] + (add ? c[i * c_row + j] : 0);
    return m;
}

/* The element of a packed operand that holds x, and with PAIR == 2 also y, the number after it. */
INLINE OPERAND NAME(operand)(REAL x, REAL y)
{
#if PAIR == 2
    return bf16_bits(x) | bf16_bits(y) << 16;
#elif ROUNDS
    return (void)y, bf16_round(x);
#else
    return (void)y, x;
#endif
}

/* Copy columns [0, n) of B (K, n), element b[k * b_row + j * b_col], into one panel (PACKED(K), NR) padded with zeros.
 */
INLINE void NAME(pack_columns)(OPERAND *restrict panel, int64_t K, int64_t n, const REAL *restrict b, int64_t b_row,
                               int64_t b_col)
{
    for (int64_t k = 0; k < K; k += PAIR, panel += NR, b += PAIR * b_row) {
        const int64_t next = k + PAIR > K ? 0 : b_row; /* an odd K has no second number in its last pair */
        for (int64_t j = 0; j < n; j++) {
            panel[j] = NAME(operand)(b[j * b_col], PAIR == 2 && next ? b[next + j * b_col] : 0);
        }
        for (int64_t j = n; j < NR; j++) panel[j] = 0;
    }
}

static TARGET void NAME(pack_panel)(OPERAND *panel, int64_t K, int64_t n, const REAL *b, int64_t b_row, int64_t b_col)
{
    if (b_col == 1 && n == NR) NAME(pack_columns)(panel, K, NR, b, b_row, 1);
    else NAME(pack_columns)(panel, K, n, b, b_row, b_col);
}

#if ROUNDS
/* Copy K adjacent numbers into PACKED(K) elements. */
INLINE void NAME(pack_row)(OPERAND *restrict packed, int64_t K, const REAL *restrict a)
{
    for (int64_t k = 0; k < K / PAIR; k++) packed[k] = NAME(operand)(a[k * PAIR], a[k * PAIR + PAIR - 1]);
    if (K % PAIR) packed[K / PAIR] = NAME(operand)(a[K - 1], 0);
}
#endif

/* Copy rows [0, m) of A (m, K), element a[r * a_row + k * a_col], into PACKED(K) groups of MR elements. */
INLINE void NAME(pack_rows)(OPERAND *restrict packed, int64_t m, int64_t K, const REAL *restrict a, int64_t a_row,
                            int64_t a_col)
{
    for (int64_t k = 0; k < K; k += PAIR, packed += MR, a += PAIR * a_col)
        for (int64_t r = 0; r < m; r++)
            packed[r] = NAME(operand)(a[r * a_row], PAIR == 2 && k + 1 < K ? a[a_col + r * a_row] : 0);
}

static TARGET void NAME(product)(const void *argument, int64_t thread)
{
    const product_task *p = argument;
    const int64_t most = DEPTH * PAIR;
    int64_t m_from = 0, m_to = p->M, n_from = 0, n_to = p->N;
    if (p->M >= p->N) share(p->M, MR, thread, p->threads, &m_from, &m_to);
    else share(p->N, NR, thread, p->threads, &n_from, &n_to);
    if (m_from == m_to || n_from == n_to) return;
    OPERAND *packed_b = (OPERAND *)p->scratch + thread * DEPTH * (WIDTH + 32), *packed_a = packed_b + DEPTH * WIDTH;
    for (int64_t n0 = n_from; n0 < n_to; n0 += WIDTH)
        for (int64_t k0 = 0; k0 < p->K; k0 += most) {
            int64_t width = min64(WIDTH, n_to - n0), depth = min64(most, p->K - k0), packed = PACKED(depth);
            int add = k0 > 0 || p->accumulate;
            for (int64_t j = 0; j < width; j += NR) NAME(pack_panel)
            (packed_b + j * packed, depth, min64(NR, width - j),
             (const REAL *)p->b + k0 * p->b_row + (n0 + j) * p->b_col, p->b_row, p->b_col);
            for (int64_t i = m_from, height; i < m_to; i += height) {
                height = min64(MR, m_to - i);
                const REAL *rows = (const REAL *)p->a + i * p->a_row + k0 * p->a_col;
                const OPERAND *a = packed_a;
                int64_t a_row = 1, a_col = MR;
                if (p->a_col != 1) { /* each step would read another cache line: copy the rows once for all panels */
                    if (p->a_row == 1 && height == MR) NAME(pack_rows)(packed_a, MR, depth, rows, 1, p->a_col);
                    else NAME(pack_rows)(packed_a, height, depth, rows, p->a_row, p->a_col);
                } else {
                    a_row = packed, a_col = 1;
#if ROUNDS
                    for (int64_t r = 0; r < height; r++)
                        NAME(pack_row)(packed_a + r * packed, depth, rows + r * p->a_row);
#else
                    a = rows, a_row = p->a_row;
#endif
                }
                for (int64_t r = 0; r < height;) {
                    int64_t done = 0;
                    for (int64_t j = 0; j < width; j += NR) {
                        REAL *c = (REAL *)p->c + (i + r) * p->c_row + n0 + j;
                        const OPERAND *b = packed_b + j * packed;
                        done = width - j >= NR
                                   ? NAME(tile)(height - r, packed, a + r * a_row, a_row, a_col, b, c, p->c_row, add)
                                   : NAME(tile_edge)(height - r, packed, a + r * a_row, a_row, a_col, b, c, p->c_row,
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
    ((OPERAND *)s->packed + (u * G + g * NR) * PACKED(H), H, min64(NR, H - u),
     (const REAL *)s->weight + (g * H + u) * H, 1, H);
}

/* Return rows [from, to) of an array (B, K) as operands of a product with the packed matrix, starting at row `from`:
 * rounded into the rest of `packed`, where each row has a place of its own, or the array itself. */
INLINE const OPERAND *NAME(operand_rows)(const scan_task *s, const REAL *rows, int64_t K, int64_t from, int64_t to)
{
#if ROUNDS
    const int64_t H = s->H, panels = (H + NR - 1) / NR * NR * gate_count(s->cell) * PACKED(H);
    OPERAND *rounded = (OPERAND *)s->packed + panels;
    for (int64_t b = from; b < to; b++) NAME(pack_row)(rounded + b * PACKED(K), K, rows + b * K);
    return rounded + from * PACKED(K);
#else
    return (void)s, (void)to, rows + from * K;
#endif
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
    const int64_t B = s->B, H = s->H, G = gate_count(s->cell), K = PACKED(H);
    int64_t from, to;
    share(B, 1, thread, s->threads, &from, &to);
    REAL z[4 * MR * NR] __attribute__((aligned(64)));
    for (int64_t t = 0; t < s->T; t++) {
        if (s->fresh) NAME(begin)(s, t, from, to);
        const OPERAND *rows = NAME(operand_rows)(s, (const REAL *)s->h_begin + t * B * H, H, from, to);
        for (int64_t u = 0; u < H; u += NR)
            for (int64_t b = from, height = 0; b < to; b += height) {
                const OPERAND *h = rows + (b - from) * K, *panel = (const OPERAND *)s->packed + u * G * K;
                for (int64_t g = 0; g < G; g++)
                    height = NAME(tile)(to - b, K, h, K, 1, panel + g * NR * K, z + g * MR * NR, NR, 0);
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
        NAME(pack_panel)
    ((OPERAND *)s->packed + u * PACKED(K), K, min64(NR, H - u), (const REAL *)s->weight + u, H, 1);
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
    const int64_t B = s->B, H = s->H, G_H = gate_count(s->cell) * H, biases = s->cell == GRU ? 4 * H : G_H;
    const int64_t K = PACKED(G_H);
    const int add = s->cell == GRU; /* the next h also depends on this h directly */
    int64_t from, to;
    share(B, 1, thread, s->threads, &from, &to);
    for (int64_t t = s->T - 1; t >= 0; t--) {
        for (int64_t b = from; b < to; b++)
            NAME(cell_backward)(s, t, b, FROM(s->d_bias, thread * biases), FROM(s->d_peephole, thread * 3 * H));
        const OPERAND *rows = NAME(operand_rows)(s, (const REAL *)s->gates + t * B * G_H, G_H, from, to);
        for (int64_t u = 0; u < H; u += NR)
            for (int64_t b = from, height; b < to; b += height) {
                const OPERAND *dz = rows + (b - from) * K, *panel = (const OPERAND *)s->packed + u * K;
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

#if !ROUNDS /* a sum and dropout round nothing: bf16 has the functions of float */

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

#endif

#undef NV
#undef LANES
#undef NR
#undef VECTOR
#undef PACKED
#undef OPERANDS
#undef MULTIPLY_ADD
#undef SIGMOID
#undef TANH
#undef FROM
#undef FROM_CONST
#undef NAME
