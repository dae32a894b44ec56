/* Threads for the parallel regions of a call.
 *
 * GNU OpenMP ends the process where it cannot create a thread (gomp_fatal; nothing can catch it), and says nothing
 * beforehand. So before a team grows, threads of our own are created, as many as it lacks and of their stack, all at
 * once; they end, and then the team grows at once. What can fail fails there, and the call runs on the threads there are.
 *
 * The threads of a team wait for the next region that the same thread enters, and those that are more than it asks for
 * end: a team is as large as that region was. They inherit the floating-point modes of the thread that creates them,
 * so subnormal numbers are made to count first. A region of another library on the same OpenMP may have made it smaller;
 * what is then created was not tried.
 */
#ifndef CNORM_TEAM_H
#define CNORM_TEAM_H

#include <stdint.h>
#include <time.h>
#include "simd/subnormals.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define CNORM_THREAD_LOCAL __declspec(thread)
#else
#define CNORM_THREAD_LOCAL _Thread_local
#endif

static CNORM_THREAD_LOCAL int team_override = 0; /* threads that this thread's calls were told to use; 0: none */
static CNORM_THREAD_LOCAL int team_size = 1;     /* threads of the region before, this one included */

static CNORM_THREAD_LOCAL int team_fixed = -1;   /* whether this thread's calls get what they were told; -1: not said */
static CNORM_THREAD_LOCAL int team_default = 0;  /* the default number, as this thread found it, */
static CNORM_THREAD_LOCAL int64_t team_default_until = 0; /* and until when that is good */
static int64_t team_region = 0;                  /* what a region without work took, in ns; 0: not known */

static int team_get_override(void) { return team_override; }
static void team_set_override(int n) { team_override = n; }
static int team_get_fixed(void) { return team_fixed; }
static void team_set_fixed(int fixed) { team_fixed = fixed; }
static int team_get_size(void) { return team_size; }
static int64_t team_get_region(void) { return __atomic_load_n(&team_region, __ATOMIC_RELAXED); }

/* Nanoseconds since some moment. No system call on Linux: the kernel has the clock in the process's memory. */
static int64_t team_clock(void) {
    struct timespec now;
#if defined(_WIN32)
    timespec_get(&now, TIME_UTC);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The default number that this thread looked up, or 0 where it is to look again. */
static int team_get_default(void) { return team_default && team_clock() < team_default_until ? team_default : 0; }
static void team_set_default(int n, int64_t lasts) {
    team_default = n;
    team_default_until = team_clock() + lasts;
}

#ifndef _OPENMP
static int omp_get_max_threads(void) { return 1; }
static int omp_get_num_procs(void) { return 1; }
static int team_openmp(void) { return 0; }
static int team_for(int n, size_t stack) { (void)n; (void)stack; return 1; }
static int team_can_brief(void) { return 0; }
static int team_gathers(void) { return 0; }
static void team_wait(int brief, int size, size_t stack) { (void)brief, (void)size, (void)stack; }
#else
#include <omp.h>
static int team_openmp(void) { return 1; }

#if defined(_WIN32)
static int team_try(int wanted, size_t stack) { (void)stack; return wanted; }
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Threads that must be left when a team has grown. Whatever else creates threads in this process may do so between the
 * trial and the growth: Python, where it has no GIL. */
enum { TEAM_SPARE = 2 };

typedef struct {
    pthread_t thread;
    pthread_mutex_t *gate;
    long id; /* the system's */
} TeamTrial;

static pthread_mutex_t team_growing = PTHREAD_MUTEX_INITIALIZER; /* one team at a time: trials would not add up */

static void *team_trial(void *argument) {
    TeamTrial *trial = argument;
#if defined(__linux__)
    trial->id = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(trial->gate);
    pthread_mutex_unlock(trial->gate);
    return NULL;
}

/* A thread that was joined counts against the limit until the system has forgotten it, some microseconds later. */
static void team_forgotten(const TeamTrial *trial) {
#if defined(__linux__)
    for (int i = 0; i < 10000 && syscall(SYS_tgkill, getpid(), trial->id, 0) == 0; ++i) sched_yield();
#else
    (void)trial;
#endif
}

/* How many threads of those that are wanted can be created, of so many bytes of stack (0: the system's default). */
static int team_try(int wanted, size_t stack) {
    const int tried = wanted + TEAM_SPARE;
    TeamTrial *trials = malloc(tried * sizeof(TeamTrial));
    pthread_mutex_t gate;
    pthread_attr_t attributes;
    sigset_t all, before;
    int created = 0;
    if (!trials) return 0;
    pthread_mutex_init(&gate, NULL);
    pthread_attr_init(&attributes);
    if (stack) pthread_attr_setstacksize(&attributes, stack);
    sigfillset(&all); /* signals are for the others */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&gate);
    for (; created < tried; ++created) {
        trials[created].gate = &gate;
        if (pthread_create(&trials[created].thread, &attributes, team_trial, &trials[created])) break;
    }
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < created; ++i) pthread_join(trials[i].thread, NULL);
    for (int i = 0; i < created; ++i) team_forgotten(&trials[i]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    pthread_mutex_destroy(&gate);
    free(trials);
    return created > TEAM_SPARE ? created - TEAM_SPARE : 0;
}
#endif

/* What a region takes in which nothing is done: the least of a few, and not many where it takes long. */
static void team_measure(int n) {
    int64_t least = 0;
    const int64_t began = team_clock();
    for (int i = 0; i < 8; ++i) {
        int64_t before = team_clock(), took;
#pragma omp parallel num_threads(n)
        __asm__ volatile("" ::: "memory");
        took = team_clock() - before;
        if (i == 0 || took < least) least = took;
        if (before + took - began > 100000) break;
    }
    __atomic_store_n(&team_region, least, __ATOMIC_RELAXED);
}

/* ---- how threads wait for each other ----
 *
 * Threads of OpenMP that wait spin for some ms before they sleep, and where other programs are running they so take the
 * processor from the thread that they wait for. Which is why each runtime has a way to wait briefly.
 *
 * GNU's waits briefly (1000 turns, some 20 us) while it manages more threads than there are processors. So a thread of
 * ours keeps a team of its own, which makes them as many, and does nothing; when it ends, waiting is as it was. LLVM's
 * has a call, which is for the thread that makes it.
 */
#if defined(__clang__)
static CNORM_THREAD_LOCAL int team_brief = 0, team_block_time = 0;
static int team_can_brief(void) { return 1; }
static int team_gathers(void) { return 0; }

static void team_wait(int brief, int size, size_t stack) { /* of the teams of this thread */
    (void)size, (void)stack;
    if (brief == team_brief) return;
    if (brief) team_block_time = kmp_get_blocktime();
    kmp_set_blocktime(brief ? 0 : team_block_time);
    team_brief = brief;
}
#elif defined(_WIN32)
static int team_can_brief(void) { return 0; }
static int team_gathers(void) { return 0; }
static void team_wait(int brief, int size, size_t stack) { (void)brief, (void)size, (void)stack; }
#else
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t over;
    int ends, size;
} TeamCrowd;

static TeamCrowd *team_crowd = NULL; /* read without the mutex `team_growing`, written with it */
static int team_processors = 1;      /* as the runtime counted them when it was loaded */

static int team_can_brief(void) {
    team_processors = omp_get_num_procs();
    return 1;
}

static int team_gathers(void) { return 1; } /* whether a thread of ours is what makes others wait briefly */

static void *team_crowd_run(void *argument) {
    TeamCrowd *crowd = argument;
    pthread_mutex_lock(&crowd->mutex);
#pragma omp parallel num_threads(crowd->size)
    __asm__ volatile("" ::: "memory");
    while (!crowd->ends) pthread_cond_wait(&crowd->over, &crowd->mutex);
    pthread_mutex_unlock(&crowd->mutex);
    pthread_cond_destroy(&crowd->over);
    pthread_mutex_destroy(&crowd->mutex);
    free(crowd);
    return NULL;
}

/* A crowd beside a team of `size` threads, or NULL where it cannot be had. */
static TeamCrowd *team_gather(int size, size_t stack) {
    TeamCrowd *crowd;
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    const int threads = size > team_processors ? 2 : team_processors - size + 2;
    int failed;
    if (threads > omp_get_thread_limit() || team_try(threads, stack) < threads) return NULL;
    if (!(crowd = malloc(sizeof(TeamCrowd)))) return NULL;
    pthread_mutex_init(&crowd->mutex, NULL);
    pthread_cond_init(&crowd->over, NULL);
    crowd->ends = 0;
    crowd->size = threads;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (stack) pthread_attr_setstacksize(&attributes, stack);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(&thread, &attributes, team_crowd_run, crowd);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!failed) return crowd;
    pthread_cond_destroy(&crowd->over);
    pthread_mutex_destroy(&crowd->mutex);
    free(crowd);
    return NULL;
}

/* Let threads wait briefly, or as they did. */
static void team_wait(int brief, int size, size_t stack) {
    if (brief == (__atomic_load_n(&team_crowd, __ATOMIC_RELAXED) != NULL)) return;
    if (pthread_mutex_trylock(&team_growing)) return; /* later, then */
    if (brief && !team_crowd) {
        __atomic_store_n(&team_crowd, team_gather(size, stack), __ATOMIC_RELAXED);
    } else if (!brief && team_crowd) {
        TeamCrowd *crowd = team_crowd;
        __atomic_store_n(&team_crowd, NULL, __ATOMIC_RELAXED);
        pthread_mutex_lock(&crowd->mutex);
        crowd->ends = 1;
        pthread_cond_signal(&crowd->over);
        pthread_mutex_unlock(&crowd->mutex); /* it frees itself */
    }
    pthread_mutex_unlock(&team_growing);
}
#endif

/* How many threads the next regions may ask for: n, or fewer where no more can be had. */
static int team_for(int n, size_t stack) {
    if (n == 1) return 1; /* no region, and the team stays as it is */
    if (n > team_size && n > omp_get_thread_limit()) n = omp_get_thread_limit();
    if (n > team_size) {
        const unsigned modes = enable_subnormals();
        int size = 1;
#if !defined(_WIN32)
        pthread_mutex_lock(&team_growing);
#endif
        n = team_size + team_try(n - team_size, stack);
#pragma omp parallel num_threads(n)
        if (omp_get_thread_num() == 0) size = omp_get_num_threads();
        n = size;
        if (n > 1) team_measure(n);
#if !defined(_WIN32)
        pthread_mutex_unlock(&team_growing);
#endif
        restore_subnormals(modes);
    }
    return team_size = n;
}
#endif
#endif
