/* The arithmetic of the engine for one instruction set. engine_kernels.c includes this file once for each, after
 * defining
 *
 *     ISA          suffix of every name in this file
 *     TARGET       function attribute that lets the compiler use the set
 *     LANES        floats in a vector register
 *     REGISTERS    number of registers that a product may use for its sums
 *     DOT          how bytes are multiplied: one of DOT_… in engine_kernels.c
 *
 * The code uses vector types, so that the source is the same for all sets; only the product of bytes and the minimum of
 * two numbers need intrinsics.
 *
 * Rows of weights are packed in groups of GROUP = 16: lane j of a vector belongs to row j, and step k multiplies column
 * k of all rows with the one activation x[k]. So nothing is summed across lanes, a sum stays in its register until it
 * is complete, and its terms are added in the order of k for any batch and any number of threads: the results are equal
 * to the bit. The columns of a group are contiguous in memory, so the weights that a tile reads again are in the
 * level-1 cache, spread over all of its sets.
 */

#define NAME(x) JOIN(x, ISA)
#define VECTORS (GROUP / LANES) /* registers per group of rows */

typedef float NAME(floats) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ints) __attribute__((vector_size(4 * LANES)));
typedef uint32_t NAME(bits) __attribute__((vector_size(4 * LANES)));
typedef uint8_t NAME(bytes) __attribute__((vector_size(LANES), aligned(1)));
typedef float NAME(half) __attribute__((vector_size(2 * LANES)));
typedef double NAME(doubles) __attribute__((vector_size(4 * LANES)));
typedef uint64_t NAME(wide) __attribute__((vector_size(4 * LANES)));
#define floats  NAME(floats)
#define ints    NAME(ints)
#define bits    NAME(bits)
#define doubles NAME(doubles)
#define wide    NAME(wide)

/* ---- products: z[m][r] += Σ_k w[k][r]·x[m][k] for M sequences and R groups of rows ----
 *
 * M and R are constants where these functions are inlined, so their loops unroll and `sum` is kept in registers. */

/* Vectors of rows computed at once: all, if their sums for M sequences fit in the registers, else fewer; x is then read
 * more than once. */
#define AT_ONCE(M, R, vectors)                                                                                         \
    ((M) * (R) * (vectors) <= REGISTERS               ? (R) * (vectors)                                                \
     : (M)*2 * (vectors) <= REGISTERS && (R) % 2 == 0 ? 2 * (vectors)                                                  \
     : (M) * (vectors) <= REGISTERS                   ? (vectors)                                                      \
     : (M)*2 <= REGISTERS && (vectors) > 2            ? 2                                                              \
                                                      : 1)

INLINE void NAME(tile32)(const float *w, const float *x, size_t x_stride, int K, float *z, const int M, const int R)
{
    const int rows = AT_ONCE(M, R, VECTORS);
    const size_t group = (size_t)K * GROUP;
    for (int first = 0; first < R * VECTORS; first += rows) {
        floats sum[MOST_SEQUENCES][4 * VECTORS];
        for (int m = 0; m < M; m++)
            for (int r = 0; r < rows; r++) sum[m][r] = *(const floats *)(z + m * Z_STRIDE + (first + r) * LANES);
        const float *column = w + first / VECTORS * group + first % VECTORS * LANES;
        for (int k = 0; k < K; k++, column += GROUP)
            for (int m = 0; m < M; m++)
                for (int r = 0; r < rows; r++) {
                    const float *rows_of_w = column + r / VECTORS * group + r % VECTORS * LANES;
                    sum[m][r] += *(const floats *)rows_of_w * x[m * x_stride + k];
                }
        for (int m = 0; m < M; m++)
            for (int r = 0; r < rows; r++) *(floats *)(z + m * Z_STRIDE + (first + r) * LANES) = sum[m][r];
    }
}

/* SPREAD: four activations, u8 with an offset of 128, in every lane. ADD_DOT: sum += Σ of four w·x in each lane. The
 * offset adds 128·Σw to the sum of a row, the same at every step; tile8 subtracts it at the end. If an instruction
 * set multiplies signed by signed bytes, SPREAD subtracts the offset from the activations instead. */
#define SIGNED (DOT == DOT_AVX2 || DOT == DOT_NEON)
INLINE ints NAME(signed_bytes)(int32_t x) { return (ints){0} + (int32_t)((uint32_t)x ^ 0x80808080u); }
#if DOT == DOT_VNNI512
#define SPREAD(x)          ((ints)_mm512_set1_epi32(x))
#define ADD_DOT(sum, w, x) ((ints)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(x), _mm512_load_si512(w)))
#elif DOT == DOT_VNNI256
#define SPREAD(x) ((ints)_mm256_set1_epi32(x))
#define ADD_DOT(sum, w, x)                                                                                             \
    ((ints)_mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(x), _mm256_load_si256((const __m256i *)(w))))
#elif DOT == DOT_AVX2 /* |x| times w with the sign of x: the sum of two products of 127·127 fits in 16 bits */
INLINE ints NAME(add_dot)(ints sum, const int8_t *w, ints x)
{
    const __m256i signs = (__m256i)x, signed_w = _mm256_sign_epi8(_mm256_load_si256((const __m256i *)w), signs);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signs), signed_w);
    return sum + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#define SPREAD(x)          NAME(signed_bytes)(x)
#define ADD_DOT(sum, w, x) NAME(add_dot)(sum, w, x)
#elif DOT == DOT_NEON
#define SPREAD(x)          NAME(signed_bytes)(x)
#define ADD_DOT(sum, w, x) ((ints)vdotq_s32((int32x4_t)(sum), vld1q_s8(w), (int8x16_t)(x)))
#else
INLINE ints NAME(add_dot)(ints sum, const int8_t *w, ints x)
{
    const uint8_t *four = (const uint8_t *)&x;
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) sum[lane] += w[4 * lane + i] * four[i];
    return sum;
}
#define SPREAD(x)          ((ints){0} + (x))
#define ADD_DOT(sum, w, x) NAME(add_dot)(sum, w, x)
#endif

INLINE void NAME(tile8)(const int8_t *w, const float *scale, const int32_t *offset, const uint8_t *x, size_t x_stride,
                        int K, float *z, const int M, const int R)
{
    const int rows = AT_ONCE(M, R, VECTORS), bytes = 4 * LANES;
    const size_t group = (size_t)(K + 3) / 4 * 4 * GROUP;
    for (int first = 0; first < R * VECTORS; first += rows) {
        ints sum[MOST_SEQUENCES][4 * VECTORS] = {{{0}}};
        const int8_t *column = w + first / VECTORS * group + first % VECTORS * bytes;
        for (int k = 0; k < K; k += 4, column += 4 * GROUP)
            for (int m = 0; m < M; m++) {
                int32_t four;
                memcpy(&four, x + m * x_stride + k, 4);
                const ints spread = SPREAD(four);
                for (int r = 0; r < rows; r++) {
                    const int8_t *rows_of_w = column + r / VECTORS * group + r % VECTORS * bytes;
                    sum[m][r] = ADD_DOT(sum[m][r], rows_of_w, spread);
                }
            }
        for (int m = 0; m < M; m++)
            for (int r = 0; r < rows; r++) {
                const int row = (first + r) * LANES;
                const ints whole = SIGNED ? sum[m][r] : sum[m][r] - *(const ints *)(offset + row);
                floats *to = (floats *)(z + m * Z_STRIDE + row);
                *to += *(const floats *)(scale + row) * __builtin_convertvector(whole, floats);
            }
    }
}

/* The same for any number of sequences and 1 to 4 groups, in tiles that fit in the registers. */
#define EACH_R(tile, M, ...)                                                                                           \
    switch (R) {                                                                                                       \
        case 1: NAME(tile)(__VA_ARGS__, M, 1); break;                                                                  \
        case 2: NAME(tile)(__VA_ARGS__, M, 2); break;                                                                  \
        case 3: NAME(tile)(__VA_ARGS__, M, 3); break;                                                                  \
        default: NAME(tile)(__VA_ARGS__, M, 4);                                                                        \
    }
#define EACH_TILE(tile, ...)                                                                                           \
    for (int m = 0, size; m < sequences; m += size, x += size * x_stride, z += size * Z_STRIDE) {                      \
        const int left = sequences - m;                                                                                \
        size = left >= MOST_SEQUENCES ? MOST_SEQUENCES : left >= 4 ? 4 : left >= 2 ? 2 : 1;                            \
        if (size == MOST_SEQUENCES) EACH_R(tile, MOST_SEQUENCES, __VA_ARGS__)                                          \
        else if (size == 4) EACH_R(tile, 4, __VA_ARGS__)                                                               \
        else if (size == 2) EACH_R(tile, 2, __VA_ARGS__)                                                               \
        else EACH_R(tile, 1, __VA_ARGS__)                                                                              \
    }

static TARGET void NAME(product32)(const float *w, const float *x, size_t x_stride, int K, float *z, int sequences,
                                   int R)
{
    EACH_TILE(tile32, w, x, x_stride, K, z)
}

static TARGET void NAME(product8)(const int8_t *w, const float *scale, const int32_t *offset, const uint8_t *x,
                                  size_t x_stride, int K, float *z, int sequences,
                                  int R){EACH_TILE(tile8, w, scale, offset, x, x_stride, K, z)}

/* ---- the cells' equations, for the 16 units of a group ---- */

/* Limit x to the interval from low to high; NaN stays NaN. */
#if DOT == DOT_VNNI512
INLINE floats NAME(between)(float low, float high, floats x)
{
    return (floats)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
}
#elif DOT == DOT_VNNI256 || DOT == DOT_AVX2
INLINE floats NAME(between)(float low, float high, floats x)
{
    return (floats)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
}
#elif DOT == DOT_NEON
INLINE floats NAME(between)(float low, float high, floats x)
{
    return (floats)vminq_f32(vdupq_n_f32(high), vmaxq_f32(vdupq_n_f32(low), (float32x4_t)x));
}
#else
INLINE floats NAME(between)(float low, float high, floats x)
{
    const bits under = (bits)(x < low), over = (bits)(x > high);
    return (floats)((under & (bits)((floats){0} + low)) | (over & (bits)((floats){0} + high)) |
                    (~under & ~over & (bits)x));
}
#endif

/* 2^x with a relative error of 1e-8, for any x: x rounded to an integer is added to the exponent's bits, and the
 * remainder, in [-1/2, 1/2], is the argument of the Taylor series of e^(x ln 2). NaN stays NaN. */
INLINE floats NAME(exp2)(floats x)
{
    x = NAME(between)(-126, 126, x);
    const floats shifted =
        x + 0x1.8p23f; /* the last bit of this sum is worth 1, so the sum ends with x rounded to an integer */
    const floats f = x - (shifted - 0x1.8p23f);
    floats p = (floats){0} + 1.5252734e-5f;
    p = p * f + 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return (floats)((bits)p + ((bits)shifted << 23));
}

INLINE floats NAME(sigmoid)(floats x) { return 1.0f / (1.0f + NAME(exp2)(x * -1.4426950f)); }
INLINE floats NAME(tanh)(floats x) { return 1.0f - 2.0f / (1.0f + NAME(exp2)(x * 2.8853901f)); }

/* h in 8 bits, 127·h + 128, in the low byte of each lane; rounded as in exp2. */
INLINE bits NAME(eight_bits)(floats h) { return (bits)(h * 127.0f + (0x1.8p23f + 128)) & 255; }

/* The same for n units, n a multiple of 16. Units outside the interval from -1 to 1 are limited to it. */
static TARGET void NAME(quantise)(const float *h, int n, uint8_t *q)
{
    for (int u = 0; u < n; u += LANES) {
        const bits steps = NAME(eight_bits)(NAME(between)(-1, 1, *(const floats *)(h + u)));
        *(NAME(bytes) *)(q + u) = __builtin_convertvector(steps, NAME(bytes));
    }
}

/* Compute the new state from the sums z (sequences, Z_STRIDE) of one group. c, h and q point to the group's first unit
 * of the first sequence; sequences are `stride` elements apart; `old` is the old h; q, if not NULL, receives h in 8
 * bits: 127·h + 128. */
static TARGET void NAME(cells)(int cell, int sequences, const float *z, const float *peephole, const float *old,
                               float *c, float *h, uint8_t *q, size_t stride)
{
    for (int m = 0; m < sequences; m++, z += Z_STRIDE, old += stride, c += stride, h += stride) {
        for (int v = 0; v < GROUP; v += LANES) {
#define Z(r)       (*(const floats *)(z + (r)*GROUP + v))
#define P(r)       (*(const floats *)(peephole + (r)*GROUP + v))
#define SIGMOID(x) NAME(sigmoid)(x)
#define TANH(x)    NAME(tanh)(x)
            floats cell_old = *(floats *)(c + v), cell_new = cell_old, out;
            switch (cell) {
                case LSTM: /* z: i, f, g, o */
                    cell_new = SIGMOID(Z(1)) * cell_old + SIGMOID(Z(0)) * TANH(Z(2));
                    out = SIGMOID(Z(3)) * TANH(cell_new);
                    break;
                case PEEPHOLE:
                    cell_new =
                        SIGMOID(Z(1) + P(1) * cell_old) * cell_old + SIGMOID(Z(0) + P(0) * cell_old) * TANH(Z(2));
                    out = SIGMOID(Z(3) + P(2) * cell_new) * TANH(cell_new);
                    break;
                case COUPLED: { /* z: f, g, o */
                    const floats forget = SIGMOID(Z(0));
                    cell_new = forget * cell_old + (1.0f - forget) * TANH(Z(1));
                    out = SIGMOID(Z(2)) * TANH(cell_new);
                    break;
                }
                case GRU: { /* z: the input's part of n, then r, z, then the hidden state's part of n */
                    const floats update = SIGMOID(Z(2)), n = TANH(Z(0) + SIGMOID(Z(1)) * Z(3));
                    out = (1.0f - update) * n + update * *(const floats *)(old + v);
                    break;
                }
                default: out = TANH(Z(0));
            }
            *(floats *)(c + v) = cell_new;
            *(floats *)(h + v) = out;
            if (q) *(NAME(bytes) *)(q + v) = __builtin_convertvector(NAME(eight_bits)(out), NAME(bytes));
#undef Z
#undef P
#undef SIGMOID
#undef TANH
        }
        if (q) q += stride;
    }
}

/* ---- the softmax before its division ---- */

/* The largest of n logits, n a multiple of 16; NaN if one of them is NaN. */
static TARGET float NAME(largest)(const float *logits, int n)
{
    floats largest = *(const floats *)logits;
    bits is_nan = (bits){0};
    for (int i = 0; i < n; i += LANES) {
        const floats x = *(const floats *)(logits + i);
        const bits above = (bits)(x > largest);
        is_nan |= (bits)(x != x);
        largest = (floats)((above & (bits)x) | (~above & (bits)largest));
    }
    float most = largest[0];
    for (int lane = 0; lane < LANES; lane++) {
        if (is_nan[lane]) return NAN;
        if (largest[lane] > most) most = largest[lane];
    }
    return most;
}

INLINE double NAME(sum_of)(doubles lanes)
{
    double sum = 0;
    for (int lane = 0; lane < LANES / 2; lane++) sum += lanes[lane];
    return sum;
}

/* Σ e^(logits[i] − largest) over i < n, n a multiple of 16, with a relative error of 1e-7, that of the logits. */
static TARGET double NAME(mass)(const float *logits, int n, float largest)
{
    doubles total = {0};
    for (int i = 0; i < n; i += LANES) {
        const floats weight = NAME(exp2)((*(const floats *)(logits + i) - largest) * 1.4426950f);
        const NAME(half) *halves = (const NAME(half) *)&weight;
        total += __builtin_convertvector(halves[0], doubles) + __builtin_convertvector(halves[1], doubles);
    }
    return NAME(sum_of)(total);
}

/* weights[i] = e^((logits[i] − largest)/temperature) for i < n, n a multiple of 16; returns their sum. The relative
 * error is 2e-15. A weight below 2^-1022 becomes 0, so a symbol with a logit of −∞ has weight 0. */
static TARGET double NAME(softmax)(const float *logits, int n, float largest, double temperature, double *weights)
{
    static const double taylor[] = {2.5678435993488206e-11,
                                    4.4455382718708116e-10,
                                    7.0549116208011233e-9,
                                    1.0178086009239699e-7,
                                    1.3215486790144309e-6,
                                    1.5252733804059840e-5,
                                    1.5403530393381610e-4,
                                    1.3333558146428443e-3,
                                    9.6181291076284772e-3,
                                    5.5504108664821580e-2,
                                    2.4022650695910071e-1,
                                    6.9314718055994531e-1,
                                    1.0}; /* (ln 2)^k/k!, k from 12 to 0 */
    doubles total = {0};
    for (int i = 0; i < n; i += LANES / 2) {
        doubles x = __builtin_convertvector(*(const NAME(half) *)(logits + i), doubles) - (double)largest;
        x = (temperature == 1 ? x : x / temperature) * 1.4426950408889634;
        const wide seen = (wide)(x >= -1022);
        x = (doubles)((seen & (wide)x) | (~seen & (wide)((doubles){0} - 1022)));
        const doubles shifted = x + 0x1.8p52, f = x - (shifted - 0x1.8p52);
        doubles p = (doubles){0} + taylor[0];
        for (int k = 1; k < 13; k++) p = p * f + taylor[k];
        p = (doubles)(((wide)p + ((wide)shifted << 52)) & seen);
        *(doubles *)(weights + i) = p;
        total += p;
    }
    return NAME(sum_of)(total);
}

static const kernels NAME(kernels) = {NAME(product32), NAME(product8), NAME(quantise), NAME(cells),
                                      NAME(largest),   NAME(mass),     NAME(softmax)};

#undef ISA
#undef TARGET
#undef LANES
#undef REGISTERS
#undef DOT
#undef NAME
#undef VECTORS
#undef AT_ONCE
#undef SIGNED
#undef SPREAD
#undef ADD_DOT
#undef EACH_R
#undef EACH_TILE
#undef floats
#undef ints
#undef bits
#undef doubles
#undef wide
