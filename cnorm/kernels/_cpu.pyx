# What this processor and its operating system can run. Compiled for the baseline.

cdef extern from *:
    """
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    /* the x86-64-v2, v3 and v4 levels; libgcc's test includes what the operating system saves */
    static int cnorm_has(int level) {
        __builtin_cpu_init();
        int v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3")
              && __builtin_cpu_supports("popcnt");
        int v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
              && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
        int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
              && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
              && __builtin_cpu_supports("avx512vl");
        return level == 2 ? v2 : level == 3 ? v3 : v4;
    }
    #else
    static int cnorm_has(int level) { return level == 2; }
    #endif
    """
    int cnorm_has(int level)


def builds():
    """Names of the builds this processor can run, the plainest first."""
    return tuple(name for name, level in (("baseline", 2), ("avx2", 3), ("avx512", 4)) if cnorm_has(level))
