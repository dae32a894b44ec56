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

#include "simd/subnormals.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define CNORM_THREAD_LOCAL __declspec(thread)
#else
#define CNORM_THREAD_LOCAL _Thread_local
#endif

static CNORM_THREAD_LOCAL int team_override = 0; /* threads that this thread's calls were told to use; 0: none */
static CNORM_THREAD_LOCAL int team_size = 1;     /* threads of the region before, this one included */

static int team_get_override(void) { return team_override; }
static void team_set_override(int n) { team_override = n; }
static int team_get_size(void) { return team_size; }

#ifndef _OPENMP
static int omp_get_max_threads(void) { return 1; }
static int omp_get_num_procs(void) { return 1; }
static int team_openmp(void) { return 0; }
static int team_for(int n, size_t stack) { (void)n; (void)stack; return 1; }
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
#if !defined(_WIN32)
        pthread_mutex_unlock(&team_growing);
#endif
        restore_subnormals(modes);
    }
    return team_size = n;
}
#endif
#endif
