/* How many of the threads that a call may have it gets, and how they wait, where a team loses time on a busy machine.
 *
 * No result depends on the number of threads, so it is chosen anew for every call, from what calls took before. Nothing
 * but the clock is read. There are two answers to a team that loses time. The first is for the process: threads of
 * OpenMP that wait for each other spin, and take the processor that the other one needs; they are made to spin briefly
 * and then sleep (`brief`). The second is for calls of about the same size (a class): at level h a call that may have n
 * threads runs on n >> h, one at least.
 *
 * What a team gains is what the call would have taken by the best of the steps below, by its kind's mean there, less
 * what it took. Gains and losses of a class add up to its balance. Where that is overdrawn, waiting becomes brief, and
 * where it is, the class goes to a lower level. The step above is tried again after a rest of POLICY_REST times what was
 * lost, spent in calls: so losses are at most 1 / POLICY_REST of the time, less with every trial that fails (back-off).
 * What a kind takes on fewer threads is measured there, and by samples: a call now and then that runs on fewer, as many
 * as POLICY_SAMPLE_SHARE of the time pays for.
 *
 * Everything is read and written by many threads at a time, with relaxed atomics: what one thread misses of another's
 * changes costs a little time, and no result.
 */
#ifndef CNORM_POLICY_H
#define CNORM_POLICY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    POLICY_STEPS = 12,     /* all threads; the same, waiting briefly; half of them, ... one of 1024 */
    POLICY_CLASSES = 8,    /* of sizes, each four times the one before */
    POLICY_KINDS = 256,    /* kinds of calls whose times are kept; a new one takes the place of another */
    POLICY_CLASS_LOG = 17, /* the first class: of fewer than 4 * 2**17 bytes */
};

/* Times are in ns. */
#define POLICY_REST 30              /* a rest is this many times as long as what was lost before it, */
#define POLICY_REST_BRIEF 5         /* and where threads wait briefly, which may gain much: single calls lose much too */
#define POLICY_BACKOFF_MAX 3        /* and twice as long after each trial that failed, up to this many times */
#define POLICY_AWAKE 5000000        /* GNU OpenMP's threads spin for about so long before they sleep, those that a trial
                                       woke too: it counts as lost */
#define POLICY_AWAKE_BRIEF 50000    /* the same where they wait briefly: about what waking them takes */
#define POLICY_CREDIT 10000000      /* the most that gains add up to: after so much loss on top a step is left */
#define POLICY_CREDIT_BRIEF 100000000
#define POLICY_OVERDRAFT 100000     /* a balance lower than minus this, and half a call's time, is overdrawn */
#define POLICY_SAMPLE_SHARE 64      /* samples take at most 1/64 of the time of teams, */
#define POLICY_SAMPLE_CREDIT 30000000 /* and so much is given at first; */
#define POLICY_SAMPLE_SAVED 2000000000 /* at most so much is saved up: large calls need it */
#define POLICY_SLOWEST 0.5          /* for which one thread takes a byte, before anything is known */
#define POLICY_WORTH 0.75f          /* of one thread's time: a team that takes more may do better by waiting briefly, */
#define POLICY_WORTH_LATE 1.25f     /* where its mean is so many times what its calls take that no thread is late for */
#define POLICY_FORGET 1024          /* what these take may grow by 1/1024 of the difference in a call */
#define POLICY_THREAD_START 20000   /* to end a thread of a team and start it again */
#define POLICY_STEADY 256           /* a mean follows its kind's calls as one of the last 256 would, */
#define POLICY_STEADY_SAMPLE 8      /* and by samples as of the last 8 */
#define POLICY_KNOWN 16             /* calls of which a mean is taken for what it is */

typedef struct {
    int32_t level;
    int32_t failures;  /* trials that failed, since one succeeded */
    int32_t trying;    /* whether the level is on trial */
    int32_t unused;
    int64_t balance;   /* what teams gained at this level */
    int64_t rest;      /* to be spent in calls before the next trial */
} PolicyClass;

typedef struct {
    uint32_t tag;                  /* of the kind that the rest is about; 0: of none */
    uint32_t teams;                /* calls on more than one thread, and samples */
    uint32_t count[POLICY_STEPS];  /* calls at a step, POLICY_STEADY at most */
    float mean[POLICY_STEPS];      /* ns per byte */
    float prompt;                  /* ns per byte of a call of all threads that is not interrupted, or 0 */
} PolicyKind;

typedef struct {
    PolicyClass classes[POLICY_CLASSES];
    PolicyKind kinds[POLICY_KINDS];
    int32_t can_brief;      /* whether there is a way to make threads wait briefly */
    int32_t brief;          /* whether they do */
    int32_t brief_failures; /* trials of long waiting that failed, since one succeeded */
    int32_t brief_trying;   /* whether long waiting is on trial */
    int64_t brief_rest;     /* to be spent in calls before the next trial */
    int64_t samples;        /* what samples may cost now */
    uint64_t calls;         /* that might have had a team */
    uint64_t fewer;         /* of these, on fewer threads than they might have had */
} Policy;

typedef enum { POLICY_AS_ASKED = 0, POLICY_BUSY = 1, POLICY_SAMPLE = 2 } PolicyReason;

/* One call: what it may have, and what it gets. */
typedef struct {
    uint32_t kind;
    int32_t wanted;
    int32_t threads;
    int32_t level;
    int32_t brief;      /* whether its threads are to wait briefly for each other */
    int32_t reason;     /* PolicyReason: of fewer threads than were wanted */
    int64_t size;       /* bytes that it reads */
    int64_t started;    /* when it began, or 0 where nobody wants to know */
} PolicyCall;

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define STORE(x, value) __atomic_store_n(&(x), (value), __ATOMIC_RELAXED)
#define ADD(x, value) __atomic_add_fetch(&(x), (value), __ATOMIC_RELAXED)
#define CHANGE(x, from, to) __atomic_compare_exchange_n(&(x), &(from), (to), 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)

static inline float policy_load(const float *from) {
    const uint32_t bits = __atomic_load_n((const uint32_t *)(const void *)from, __ATOMIC_RELAXED);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void policy_store(float *to, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    __atomic_store_n((uint32_t *)(void *)to, bits, __ATOMIC_RELAXED);
}

static inline float policy_mean(const PolicyKind *kind, int step) { return policy_load(&kind->mean[step]); }

/* A call of all threads took so long: at once where it is the shortest, else slowly, as another machine may be slower. */
static inline void policy_note_prompt(PolicyKind *kind, float time) {
    const float prompt = policy_load(&kind->prompt);
    policy_store(&kind->prompt, prompt == 0 || time < prompt ? time : prompt + (time - prompt) / POLICY_FORGET);
}

static inline void policy_reset(Policy *p, int can_brief) {
    memset(p, 0, sizeof *p);
    p->can_brief = can_brief;
    p->samples = POLICY_SAMPLE_CREDIT;
}

static inline int policy_log2(uint64_t n) { return n < 2 ? 0 : 63 - __builtin_clzll(n); }

static inline PolicyClass *policy_class(Policy *p, int64_t size) {
    const int i = (policy_log2((uint64_t)size) - POLICY_CLASS_LOG) / 2;
    return &p->classes[i < 0 ? 0 : i < POLICY_CLASSES ? i : POLICY_CLASSES - 1];
}

/* A kind of call: what it runs, and the axes of its job to a power of two. Never 0. */
static inline uint32_t policy_tag(uintptr_t kernel, int flags, const ptrdiff_t *shape) {
    uint64_t hash = (uint64_t)kernel * 31 + (uint64_t)flags;
    for (int i = 0; i < 5; ++i) hash = hash * 67 + (uint64_t)policy_log2((uint64_t)shape[i]);
    hash *= UINT64_C(0x9E3779B97F4A7C15);
    return (uint32_t)(hash >> 32) | 1;
}

/* What is known of a kind; of one that is not known yet, nothing, in the place of another. */
static inline PolicyKind *policy_kind(Policy *p, uint32_t tag) {
    PolicyKind *kind = &p->kinds[(tag >> 1) % POLICY_KINDS];
    if (LOAD(kind->tag) != tag) {
        STORE(kind->teams, 0);
        for (int i = 0; i < POLICY_STEPS; ++i) STORE(kind->count[i], 0);
        policy_store(&kind->prompt, 0);
        STORE(kind->tag, tag);
    }
    return kind;
}

static inline int policy_threads(int wanted, int level) { return wanted >> level > 1 ? wanted >> level : 1; }

static inline int policy_step(int level, int brief) { return level ? level + 1 : brief != 0; }

/* The step below this one at which the kind was fastest, or -1 where none is known. */
static inline int policy_best_below(const PolicyKind *kind, int step, int deepest) {
    int best = -1;
    for (int i = step + 1; i <= policy_step(deepest, 0); ++i)
        if (LOAD(kind->count[i]) && (best < 0 || policy_mean(kind, i) < policy_mean(kind, best))) best = i;
    return best;
}

/* The level at which a call that might run at `level` is to run to see what it takes there, or `level`. */
static inline int policy_sample(Policy *p, const PolicyKind *kind, int level, int brief, int deepest, int wanted,
                                int64_t size) {
    const uint32_t teams = LOAD(kind->teams), known = LOAD(kind->count[policy_step(deepest, 0)]);
    const int often = teams == 4 || teams == 16 || teams % 256 == 64;
    const double now = policy_mean(kind, policy_step(level, brief)) * (double)size;
    double cost, most = POLICY_SLOWEST * (double)size;
    /* one thread first; then all levels below in turns, as the best may not be next to this one or to that */
    const int turn = teams < 64 ? 1 + (teams == 16) : (int)(teams / 256);
    const int at = known ? deepest - turn % (deepest - level) : deepest;
    if (!LOAD(kind->count[policy_step(level, brief)]) || (known && !often)) return level;
    cost = now * (policy_threads(wanted, level) - 1);
    if (at < deepest) /* the team is made smaller, and grows again */
        cost = most = now + (double)POLICY_THREAD_START * policy_threads(wanted, level);
    else if (known)
        most = policy_mean(kind, policy_step(at, 0)) * (double)size;
    if (cost > most) cost = most;
    if ((double)LOAD(p->samples) < cost) return level;
    ADD(p->samples, -(int64_t)cost);
    return at;
}

/* Balances are of what was; here something else begins. */
static inline void policy_new_balances(Policy *p) {
    for (int i = 0; i < POLICY_CLASSES; ++i) STORE(p->classes[i].balance, 0);
}

/* Fill in what a call of a kind gets that reads `size` bytes and may have `wanted` threads, two or more. */
static inline void policy_choose(Policy *p, PolicyCall *call, uint32_t tag, int64_t size, int wanted) {
    PolicyClass *class = policy_class(p, size);
    const int deepest = policy_log2((uint64_t)wanted);
    int32_t current = LOAD(class->level), brief = LOAD(p->brief);
    if (current > 0 && LOAD(class->rest) <= 0 && !LOAD(class->trying)) {
        const int32_t next = (current > deepest ? deepest : current) - 1;
        if (CHANGE(class->level, current, next)) {
            STORE(class->balance, 0);
            STORE(class->trying, 1);
            current = next;
        }
    }
    if (brief && current == 0 && LOAD(p->brief_rest) <= 0 && CHANGE(p->brief, brief, 0)) {
        STORE(p->brief_trying, 1);
        policy_new_balances(p);
        brief = 0;
    }
    call->kind = tag;
    call->wanted = wanted;
    call->size = size;
    call->started = 0;
    call->brief = brief;
    call->level = current > deepest ? deepest : current;
    call->reason = call->level ? POLICY_BUSY : POLICY_AS_ASKED;
    if (call->level < deepest) {
        const int level = policy_sample(p, policy_kind(p, tag), call->level, brief, deepest, wanted, size);
        if (level != call->level) call->reason = POLICY_SAMPLE;
        call->level = level;
    }
    call->threads = policy_threads(wanted, call->level);
    ADD(p->calls, 1);
    if (call->threads < wanted) ADD(p->fewer, 1);
}

/* Threads that such a call would get now, samples and trials apart. Nothing changes. */
static inline int policy_likely(Policy *p, int64_t size, int wanted) {
    return policy_threads(wanted, LOAD(policy_class(p, size)->level));
}

/* Counts of calls, and whether threads wait briefly now. */
static inline uint64_t policy_calls(Policy *p) { return LOAD(p->calls); }
static inline uint64_t policy_fewer(Policy *p) { return LOAD(p->fewer); }
static inline int policy_brief(Policy *p) { return LOAD(p->brief); }

static inline int64_t policy_rest(int64_t lost, int brief, int32_t failures) {
    const int doubled = failures < POLICY_BACKOFF_MAX ? failures : POLICY_BACKOFF_MAX;
    return lost * (brief ? POLICY_REST_BRIEF : POLICY_REST) << doubled;
}

/* Leave a level at which teams lose. */
static inline void policy_leave(PolicyClass *class, int32_t level, int next, int brief, int64_t lost) {
    const int32_t failures = LOAD(class->failures);
    if (!CHANGE(class->level, level, next)) return;
    STORE(class->rest, policy_rest(lost, brief, failures));
    STORE(class->failures, failures + 1);
    STORE(class->balance, 0);
    STORE(class->trying, 0);
}

/* No longer spin for long. The class that found it so has some credit: threads that spin already do so to their
 * end. */
static inline void policy_wait_briefly(Policy *p, PolicyClass *class, int64_t lost) {
    const int32_t failures = LOAD(p->brief_failures);
    int32_t brief = 0;
    if (!CHANGE(p->brief, brief, 1)) return;
    STORE(p->brief_rest, policy_rest(lost, 0, failures));
    STORE(p->brief_failures, failures + 1);
    STORE(p->brief_trying, 0);
    policy_new_balances(p);
    STORE(class->balance, POLICY_AWAKE);
}

/* Take note of what a call took. */
static inline void policy_note(Policy *p, const PolicyCall *call, int64_t elapsed) {
    PolicyClass *class = policy_class(p, call->size);
    PolicyKind *kind = policy_kind(p, call->kind);
    const int deepest = policy_log2((uint64_t)call->wanted), step = policy_step(call->level, call->brief);
    const int32_t current = LOAD(class->level), brief = LOAD(p->brief);
    const uint32_t before = LOAD(kind->count[step]);
    const uint32_t steady = call->reason == POLICY_SAMPLE ? POLICY_STEADY_SAMPLE : POLICY_STEADY;
    const uint32_t count = before < steady ? before + 1 : steady;
    const float time = (float)((double)elapsed / (double)call->size);
    float mean = before ? policy_mean(kind, step) : time;
    int64_t balance, overdraft, instead; /* what it would have taken by the best step below */
    int best, next;
    /* a sample that was interrupted is no time to compare with */
    mean += (time - mean) / (float)(call->reason == POLICY_SAMPLE && time < mean && count > 2 ? 2 : count);
    policy_store(&kind->mean[step], mean);
    if (step == 0) policy_note_prompt(kind, time);
    STORE(kind->count[step], count);
    if (current > 0) ADD(class->rest, -elapsed);
    if (brief) ADD(p->brief_rest, -elapsed);
    if (call->threads > 1 || call->reason == POLICY_SAMPLE) ADD(kind->teams, 1);
    if (call->threads == 1 || call->reason == POLICY_SAMPLE) return;
    if (LOAD(p->samples) < POLICY_SAMPLE_SAVED) ADD(p->samples, elapsed / POLICY_SAMPLE_SHARE);
    best = policy_best_below(kind, step, deepest);
    if (best < 0) { /* nothing to compare with: what counts is how much longer it took than it mostly does */
        instead = (int64_t)(2 * (double)mean * (double)call->size);
        if (instead > elapsed) instead = elapsed;
    } else {
        /* Fewer threads take longer by what they are fewer, at most: what was measured in few calls, some of which may
         * have been interrupted, is no time to compare with. */
        const int below = best < 2 ? call->threads : policy_threads(call->wanted, best - 1);
        const float longest = 1.1f * mean * (float)call->threads / (float)below;
        const int late = step == 0 && mean > POLICY_WORTH_LATE * policy_load(&kind->prompt);
        const float worth = late && p->can_brief && best > 1 ? POLICY_WORTH : 1;
        const float known = worth * policy_mean(kind, best);
        const int few = LOAD(kind->count[best]) < POLICY_KNOWN;
        instead = (int64_t)((double)(few && longest < known ? longest : known) * (double)call->size);
    }
    if (current != call->level || brief != call->brief) { /* the step was left meanwhile, or others are on trial */
        if (instead >= elapsed) return;
        if (current > call->level) ADD(class->rest, policy_rest(elapsed - instead, call->brief, 0));
        if (brief && !call->brief) ADD(p->brief_rest, policy_rest(elapsed - instead, 0, 0));
        return;
    }
    balance = ADD(class->balance, instead - elapsed);
    overdraft = POLICY_OVERDRAFT + instead / 2;
    if (balance < -overdraft) {
        next = best > 1 ? best - 1 : call->level + 1;
        if (brief || !p->can_brief || LOAD(class->trying))
            policy_leave(class, current, next, brief, (brief ? POLICY_AWAKE_BRIEF : POLICY_AWAKE) - balance);
        if (!brief && p->can_brief) policy_wait_briefly(p, class, POLICY_AWAKE - balance);
    } else if (balance > overdraft && LOAD(class->trying) + LOAD(p->brief_trying)) {
        if (LOAD(class->trying)) {
            STORE(class->trying, 0);
            STORE(class->failures, 0);
            STORE(class->rest, policy_rest(POLICY_AWAKE_BRIEF, brief, 0));
        }
        if (!brief) {
            STORE(p->brief_trying, 0);
            STORE(p->brief_failures, 0);
        }
    } else if (balance > (brief ? POLICY_CREDIT_BRIEF : POLICY_CREDIT)) {
        STORE(class->balance, brief ? POLICY_CREDIT_BRIEF : POLICY_CREDIT);
    }
}

#undef LOAD
#undef STORE
#undef ADD
#undef CHANGE
#endif
