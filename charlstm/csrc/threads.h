/* The thread pool that both cores use.
 *
 * Worker threads wait for a task: first for some microseconds in a loop, because the next task usually follows at once,
 * then asleep. One caller at a time uses a pool. Threads do not survive a fork: in a child process a pool has only the
 * calling thread, and pool_destroy leaves the parent's threads alone.
 */
#ifndef CHARLSTM_THREADS_H
#define CHARLSTM_THREADS_H

typedef struct thread_pool thread_pool;
typedef void thread_task(void *argument, int thread);

/* Create a pool of up to `threads` threads, including the caller. If the system creates fewer threads, the pool has
 * fewer. NULL, if there is no memory, is a pool with the caller alone. */
thread_pool *pool_create(int threads);
void pool_destroy(thread_pool *pool);

/* The number of threads of the pool, at least 1. */
int pool_threads(const thread_pool *pool);
/* Whether the pool was created by this process, and not by the process that it was forked from. */
int pool_is_own(const thread_pool *pool);

/* Run task(argument, i) for i from 0 to threads − 1, each in a thread of its own, at most pool_threads(); the caller
 * runs i = 0. Returns when all have returned. */
void pool_run(thread_pool *pool, int threads, thread_task *task, void *argument);

/* Barrier inside a task: wait until all `threads` threads are at it. What each wrote before it, all can read after it.
 */
void pool_barrier(thread_pool *pool, int threads);

#endif
