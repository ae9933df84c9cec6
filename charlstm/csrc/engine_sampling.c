/* From logits to a surprisal or a symbol. inference/filters.py is the reference of the rule.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, K columns of a matrix.
 */
#include "engine_internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* The largest of a sequence's logits, or NaN if one is NaN or +∞, or if all are −∞. */
static float largest_of(const engine *e, const float *logits)
{
    const float largest = e->kernels->largest(logits, e->padded);
    return largest >= -FLT_MAX && largest <= FLT_MAX ? largest : NAN;
}

/* SplitMix64's mixing function, the same as in inference/filters.py. */
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

/* Sift c[at] down in a binary heap of n candidates, whose root is ranked before all others. */
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

/* Move the first of n candidates by rank to the front: the fewest whose weights sum to `mass` or more, but at least one
 * and at most `most`. Return their number. Only the kept candidates are sorted. */
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

void score(engine *e, int sequence, int thread, int t)
{
    const job *j = &e->job;
    const int V = e->options.vocabulary;
    const size_t at = (size_t)t * (size_t)j->batch + (size_t)sequence, first = at * (size_t)j->top;
    const float *logits = e->logits + (size_t)sequence * e->padded, largest = largest_of(e, logits);
    const double mass = isnan(largest) ? NAN : e->kernels->mass(logits, e->padded, largest);
    const int32_t symbol = j->ids[at + (size_t)j->batch];
    j->nats[at] = isnan(largest) ? NAN : log(mass) - ((double)logits[symbol] - largest);
    candidate *c = e->candidates + (size_t)thread * e->padded;
    if (j->top > 0 && !isnan(largest)) {
        for (int i = 0; i < V; i++) c[i] = (candidate){logits[i], logits[i], i};
        keep_first(c, V, j->top, INFINITY);
    }
    for (int i = 0; i < j->top; i++) { /* keep_first returns the candidates in reverse order */
        const candidate *kept = c + j->top - 1 - i;
        j->best[first + (size_t)i] = isnan(largest) ? -1 : kept->symbol;
        j->shares[first + (size_t)i] = isnan(largest) ? NAN : exp(kept->weight - largest) / mass;
    }
}

static double weight_of(const candidate *c, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += c[i].weight;
    return sum;
}

/* Rank candidates by the distance of their surprisal from the entropy, as inference/filters.py does. */
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

/* Set the weights (V) of the symbols that the rule's filters exclude to 0. The largest weight is 1. */
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
            if (c[i].weight >= r->min_p) c[n++] = c[i]; /* the largest weight, 1, has passed all filters so far */
    }
    if (r->typical < 1) {
        rank_by_typicality(c, n);
        n = keep_first(c, n, n, r->typical * weight_of(c, n));
    }
    memset(weights, 0, (size_t)V * sizeof *weights);
    for (int i = 0; i < n; i++) weights[c[i].symbol] = c[i].weight;
}

/* The state of an automaton after a symbol of a class at step t, or ENGINE_NEVER if it must not be sampled. */
static inline int32_t state_after(const engine_rule *r, int32_t phase, int32_t class, int t)
{
    const int32_t after = r->follows[(size_t)phase * (size_t)r->classes + (size_t)class];
    if (after < 0 || after >= r->states) return ENGINE_NEVER;
    if (r->limit < 0 || r->distances[after] < r->limit - t) return after;
    return r->distances[phase] == 0 ? r->end : ENGINE_NEVER;
}

/* Which classes of symbols the automaton allows at step t, in this thread's row; NULL if it allows all of them. */
static const uint8_t *allowed_classes(engine *e, int thread, int32_t phase, int t)
{
    const engine_rule *r = &e->job.rule;
    uint8_t *may = e->may + (size_t)thread * (size_t)(e->padded + GROUP);
    const int32_t *follows = r->follows + (size_t)phase * (size_t)r->classes;
    int allowed = 0;
    for (int c = 0; c < r->classes; c++) may[c] = follows[c] != ENGINE_NEVER;
    for (int c = 0; r->limit >= 0 && c < r->classes; c++)
        if (may[c]) may[c] = state_after(r, phase, c, t) != ENGINE_NEVER;
    for (int c = 0; c < r->classes; c++) allowed += may[c];
    return allowed == r->classes ? NULL : may;
}

/* Apply the rule's penalty and exclusions to a sequence's logits at step t. Return the result in this thread's row, or
 * the logits themselves if nothing changes. `allowed` is the same for all sequences and steps; the automaton's
 * exclusions depend on the state of the sequence. */
static const float *adjust(engine *e, int sequence, int thread, int t, int32_t phase)
{
    const engine_rule *r = &e->job.rule;
    const float *logits = e->logits + (size_t)sequence * e->padded;
    const uint8_t *may = r->follows ? allowed_classes(e, thread, phase, t) : NULL;
    if (!r->allowed && !may && r->penalty == 1) return logits;
    float *own = memcpy(e->adjusted + (size_t)thread * e->padded, logits, (size_t)e->padded * 4);
    const float penalty = (float)r->penalty;
    for (int back = 1; r->penalty != 1 && back <= r->window; back++) {
        const int at = t - back; /* negative: before this call, so in `recent` */
        const int32_t symbol = at >= 0 ? e->job.symbols[(size_t)at * e->job.batch + sequence]
                                       : r->recent[(size_t)(r->window + at) * e->job.batch + sequence];
        if (symbol >= 0) own[symbol] = logits[symbol] > 0 ? logits[symbol] / penalty : logits[symbol] * penalty;
    }
    for (int i = 0; r->allowed && i < e->options.vocabulary; i++)
        if (!r->allowed[i]) own[i] = -INFINITY;
    for (int i = 0; may && i < e->options.vocabulary; i++) own[i] = may[r->class_of[i]] ? own[i] : -INFINITY;
    return own;
}

int32_t sample(engine *e, int sequence, int row, int thread, int t, int32_t phase)
{
    const uint64_t gamma = 0x9E3779B97F4A7C15u;
    const float *logits = e->logits + (size_t)sequence * e->padded;
    double *cumulative = e->weights + (size_t)row * e->padded;
    float largest = largest_of(e, logits);
    if (!isnan(largest)) {
        const float *adjusted = adjust(e, sequence, thread, t, phase);
        if (adjusted != logits) largest = largest_of(e, adjusted);
        logits = adjusted;
    }
    if (isnan(largest)) {
        atomic_store(&e->not_finite, 1);
        return 0;
    }
    if (e->job.rule.temperature == 0) {
        int best = 0;
        while (logits[best] != largest) best++;
        return best;
    }
    e->kernels->softmax(logits, e->padded, largest, e->job.rule.temperature, cumulative);
    const int V = e->options.vocabulary;
    if (e->job.filters) filter(&e->job.rule, cumulative, e->candidates + (size_t)thread * e->padded, V);
    for (int i = 1; i < V; i++) cumulative[i] += cumulative[i - 1];
    const uint64_t start = mix(mix(e->job.seed) + e->job.streams[sequence] * gamma);
    const double number = (double)(mix(start + (e->job.position + (uint64_t)t + 1) * gamma) >> 11) * 0x1p-53;
    int low = 0, high = V - 1;
    while (low < high) { /* the first symbol whose cumulative weight exceeds number · total */
        const int middle = (low + high) / 2;
        if (cumulative[middle] > number * cumulative[V - 1]) high = middle;
        else low = middle + 1;
    }
    return low;
}

/* If logits are NaN or infinite, the symbol may be one that the automaton excludes; the state then stays as it is. */
int32_t phase_after(const engine *e, int32_t phase, int32_t symbol, int t)
{
    if (!e->job.rule.follows) return 0;
    const int32_t state = state_after(&e->job.rule, phase, e->job.rule.class_of[symbol], t);
    return state == ENGINE_NEVER ? phase : state;
}

static int is_share(double x) { return x >= 0 && x <= 1; }

/* Whether every index that a rule's automaton uses is in range, except in `follows`, which is checked where it is read.
 * A state that allows no symbol makes the largest logit −∞, which is reported as not finite. */
static int is_automaton(const engine *e, const engine_rule *r, int batch)
{
    if (r->states < 1 || !in_range(r->classes, 1, e->padded + GROUP) || !r->class_of || !r->phases) return 0;
    if (r->limit >= 0 && (!r->distances || !in_range(r->end, 0, r->states - 1))) return 0;
    for (int i = 0; i < e->options.vocabulary; i++)
        if (!in_range(r->class_of[i], 0, r->classes - 1)) return 0;
    for (int b = 0; b < batch; b++)
        if (!in_range(r->phases[b], 0, r->states - 1)) return 0;
    return 1;
}

int is_rule(const engine *e, const engine_rule *r, int batch)
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
