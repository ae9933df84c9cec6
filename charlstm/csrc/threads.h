/* A pool of threads that both cores compute with.
 *
 * Worker threads wait for a task: for some microseconds in a loop, because the next task mostly comes at once, then
 * asleep. One caller at a time uses a pool. Threads do not survive a fork: in a child process a pool has only the
 * calling thread, and pool_destroy leaves the parent's threads alone.
 */
#ifndef CHARLSTM_THREADS_H
#define CHARLSTM_THREADS_H

typedef struct thread_pool thread_pool;
typedef void thread_task(void *argument, int thread);

/* A pool that computes with up to `threads` threads, the caller among them. If the system gives fewer, the pool has
 * fewer; NULL, if there is no memory, is a pool with the caller alone. */
thread_pool *pool_create(int threads);
void pool_destroy(thread_pool *pool);

/* How many threads the pool has now, at least 1. */
int pool_threads(const thread_pool *pool);
/* Whether the pool was created by this process, and not by the process that it was forked from. */
int pool_is_own(const thread_pool *pool);

/* Run task(argument, i) for i from 0 to threads − 1, each in a thread of its own, at most pool_threads(); the caller
 * runs i = 0. Returns when all have returned. */
void pool_run(thread_pool *pool, int threads, thread_task *task, void *argument);

/* Barrier inside a task: wait until all `threads` of it are here. What each wrote before it, all read after it. */
void pool_barrier(thread_pool *pool, int threads);

#endif
