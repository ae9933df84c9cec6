/* How fast this machine reads weights again and again: the limit of any engine that draws one character at a time.
 *
 * Each of `threads` threads sums its share of `bytes`, `rounds` times over. Returns seconds for one reading of all. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* 32 bytes, for where a processor has no wider register the compiler takes 64 apart through memory. */
typedef long long vector __attribute__((vector_size(32)));

struct share {
    const char *from;
    size_t bytes;
    int rounds;
    long long sum;
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static long long read_once(const char *from, size_t bytes)
{
    vector sum[8] = {{0}};
    for (size_t i = 0; i + 256 <= bytes; i += 256)
        for (int j = 0; j < 8; j++) sum[j] ^= ((const vector *)(from + i))[j];
    for (int j = 1; j < 8; j++) sum[0] ^= sum[j];
    return sum[0][0] ^ sum[0][1] ^ sum[0][2] ^ sum[0][3];
}

static void *read_share(void *argument)
{
    struct share *share = argument;
    for (int i = 0; i < share->rounds; i++) share->sum += read_once(share->from, share->bytes);
    return NULL;
}

double read_seconds(size_t bytes, int threads, int rounds)
{
    if (threads < 1 || threads > 64) return -1;
    struct share shares[64];
    pthread_t ids[64];
    char *memory = NULL;
    if (posix_memalign((void **)&memory, 4096, bytes)) return -1;
    memset(memory, 1, bytes);
    const size_t part = bytes / (size_t)threads / 256 * 256;
    struct timespec began, ended;
    for (int timed = 0; timed < 2; timed++) { /* the first pass brings the bytes into the caches */
        clock_gettime(CLOCK_MONOTONIC, &began);
        for (int i = 0; i < threads; i++) {
            shares[i] = (struct share){memory + (size_t)i * part, part, timed ? rounds : 1, 0};
            if (i + 1 < threads) pthread_create(&ids[i], NULL, read_share, &shares[i]);
            else read_share(&shares[i]);
        }
        for (int i = 0; i + 1 < threads; i++) pthread_join(ids[i], NULL);
        clock_gettime(CLOCK_MONOTONIC, &ended);
    }
    free(memory);
    return ((double)(ended.tv_sec - began.tv_sec) + 1e-9 * (double)(ended.tv_nsec - began.tv_nsec)) / rounds;
}
