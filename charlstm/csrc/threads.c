/* The thread pool of threads.h. */
#include "threads.h"

#include "cpu.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define IDLE_SPINS                                                                                                     \
    4000 /* of about 20 ns each, before an idle worker sleeps; a caller in Python starts the next task sooner */
#define BARRIER_SPINS 500 /* before a waiting thread yields its processor */
#define THREAD_BITS   16  /* of a ticket, for the number of threads */
#define SHUTDOWN      UINT64_MAX

typedef struct {
    thread_pool *pool;
    pthread_t thread;
    int index;
} worker;

struct thread_pool {
    _Alignas(64) _Atomic uint64_t ticket; /* number of the task << THREAD_BITS | its threads, or SHUTDOWN */
    _Alignas(64) atomic_int sleepers;
    _Alignas(64) atomic_int arrived; /* at the barrier */
    _Alignas(64) atomic_int barriers_passed;
    _Alignas(64) atomic_int finished; /* workers that have returned from the task */
    thread_task *task;
    void *argument;
    pid_t process; /* the process that created the workers */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int workers;
    worker worker[];
};

/* Wait in a loop, and after BARRIER_SPINS yield the processor, perhaps to the thread that this one waits for. */
static void wait_while(atomic_int *value, int unwanted)
{
    for (int spins = 0; atomic_load(value) == unwanted; spins++) {
        cpu_relax();
        if (spins > BARRIER_SPINS) sched_yield();
    }
}

static uint64_t next_ticket(thread_pool *pool, uint64_t seen)
{
    uint64_t ticket;
    int spins = 0;
    while ((ticket = atomic_load(&pool->ticket)) == seen && ++spins < IDLE_SPINS) cpu_relax();
    if (ticket != seen) return ticket;
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while ((ticket = atomic_load(&pool->ticket)) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
    return ticket;
}

static void *run_worker(void *argument)
{
    const worker *self = argument;
    thread_pool *pool = self->pool;
    uint64_t ticket = 0;
    while ((ticket = next_ticket(pool, ticket)) != SHUTDOWN)
        if (self->index < (int)(ticket & ((1 << THREAD_BITS) - 1))) {
            pool->task(pool->argument, self->index);
            atomic_fetch_add(&pool->finished, 1);
        }
    return NULL;
}

static void announce(thread_pool *pool, uint64_t ticket)
{
    atomic_store(&pool->ticket, ticket);
    if (atomic_load(&pool->sleepers)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
}

thread_pool *pool_create(int threads)
{
    void *memory;
    const int most = (1 << THREAD_BITS) - 1, workers = threads < 1 ? 0 : (threads < most ? threads : most) - 1;
    if (posix_memalign(&memory, 64, sizeof(thread_pool) + (size_t)workers * sizeof(worker))) return NULL;
    thread_pool *pool = memory;
    *pool = (thread_pool){.process = getpid()};
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the caller's threads */
    while (pool->workers < workers) {
        worker *new = &pool->worker[pool->workers];
        new->pool = pool;
        new->index = pool->workers + 1;
        if (pthread_create(&new->thread, NULL, run_worker, new)) break;
        pool->workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool;
}

void pool_destroy(thread_pool *pool)
{
    if (!pool) return;
    if (pool_is_own(pool)) {
        announce(pool, SHUTDOWN);
        for (int i = 0; i < pool->workers; i++) pthread_join(pool->worker[i].thread, NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->mutex);
    }
    free(pool);
}

int pool_is_own(const thread_pool *pool) { return pool && pool->process == getpid(); }

int pool_threads(const thread_pool *pool) { return pool_is_own(pool) ? pool->workers + 1 : 1; }

void pool_run(thread_pool *pool, int threads, thread_task *task, void *argument)
{
    if (threads > 1) {
        pool->task = task;
        pool->argument = argument;
        atomic_store(&pool->finished, 0);
        const uint64_t number = (atomic_load(&pool->ticket) >> THREAD_BITS) + 1;
        announce(pool, number << THREAD_BITS | (uint64_t)threads);
    }
    task(argument, 0);
    if (threads < 2) return;
    for (int done; (done = atomic_load(&pool->finished)) < threads - 1;) wait_while(&pool->finished, done);
}

void pool_barrier(thread_pool *pool, int threads)
{
    if (threads < 2) return;
    const int passed = atomic_load_explicit(&pool->barriers_passed, memory_order_relaxed);
    if (atomic_fetch_add(&pool->arrived, 1) == threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store(&pool->barriers_passed, passed + 1);
        return;
    }
    wait_while(&pool->barriers_passed, passed);
}
