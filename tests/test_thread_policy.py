"""Fewer threads on a busy machine: the policy by itself, fed with made-up times, and in calls."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from operations import OPERATIONS
from test_threads import LINUX, OPENMP, _python, _run_together, _same_from_many_threads

import cnorm
import cnorm.functional as F
from cnorm import _runtime, _threads

SECONDS = float(os.environ.get("CNORM_SECONDS", "1"))
MS = 1_000_000  # in ns
SIZE = 3 << 20
REST = 30  # POLICY_REST


DRAWN = 4001


def often(base, share=0.0, low=0.0, high=0.0):
    """Times in ms: about `base`, and a share of the calls longer by something between."""
    rng = np.random.default_rng([int(1e4 * value) for value in (base, share, low, high)])
    late = np.where(rng.random(DRAWN) < share, rng.uniform(low, high, DRAWN), 0)
    return (base * (1 + 0.05 * rng.standard_normal(DRAWN) ** 2) + late).tolist()


def play(policy, times, calls, rng, size=SIZE, wanted=2):
    """So many calls; how many ms they took of each way, and how many there were.

    `times` has for each number of threads what a call takes, where they wait for long and briefly.
    """
    spent, made = Counter(), Counter()
    start = int(rng.integers(DRAWN))
    for i in range(start, start + calls):
        call = policy.choose(2 * size.bit_length() + 1, size, wanted)
        brief = call.brief and call.threads > 1
        took = times[call.threads][-1 if brief else 0][i * 7 % DRAWN]
        policy.note(call, int(took * MS))
        way = (call.threads, "brief" if brief else "long")
        spent[way] += took
        made[way] += 1
    return spent, made


def mean(spent, calls):
    return spent.total() / calls.total()


def two(one, brief, long):
    return {1: (one,), 2: (long, brief)}


IDLE = two(often(0.28), often(0.15), often(0.15))
# One thread, a team whose threads wait briefly, one whose threads spin.
STATES = {
    "idle": IDLE,
    "interrupted now and then": two(*[often(base, 1e-4, 1, 10) for base in (0.28, 0.15, 0.15)]),
    "idle, with other work between the calls": two(often(0.28), often(0.19), often(0.15)),
    "a team gains little": two(*[often(base, 1e-4, 0.5, 4) for base in (0.03, 0.029, 0.0245)]),
    "a team gains nothing": two(often(0.28), often(0.28), often(0.28)),
    "one other": two(often(0.27), often(0.29, 0.01, 1, 3), often(0.2, 0.1, 2, 5)),
    "two others": two(often(0.28, 0.02, 2, 10), often(0.19, 0.02, 3, 15), often(0.2, 0.3, 2, 10)),
    "four": two(often(0.28, 0.03, 5, 25), often(0.19, 0.01, 5, 40), often(0.2, 0.5, 10, 50)),
    "small calls": two(
        often(0.06, 0.01, 5, 20), often(0.05, 0.004, 5, 20), often(0.04, 0.5, 9, 30)
    ),
    "no team helps": two(
        often(0.06, 0.003, 5, 20), often(0.05, 0.03, 5, 20), often(0.04, 0.5, 9, 30)
    ),
    "large calls": two(often(8, 0.5, 5, 20), often(5, 0.3, 5, 20), often(5, 0.7, 20, 60)),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("can_brief", [True, False], ids=["two answers", "one answer"])
def test_the_mean_stays_near_the_best(state, can_brief, rng):
    times = STATES[state]
    policy = _runtime.ThreadPolicy(can_brief)
    spent, calls = play(policy, times, 3_000 if state == "large calls" else 30_000, rng)
    one, long, brief = (np.mean(drawn) for drawn in (*times[1], *times[2]))
    assert mean(spent, calls) < 1.15 * one
    if long < 0.9 * min(one, brief * 1.2):  # and nothing of what a team gains is lost
        assert mean(spent, calls) < 1.03 * long
    if can_brief and state == "large calls":
        assert mean(spent, calls) < 1.15 * brief


def test_samples_cost_little(rng):
    _, calls = play(_runtime.ThreadPolicy(), IDLE, 20_000, rng)
    assert 1e-3 < calls[1, "long"] / calls.total() < 0.02


def test_a_machine_that_becomes_busy_and_idle_again(rng):
    policy = _runtime.ThreadPolicy()
    busy = two(often(0.3), often(3), often(5))
    assert play(policy, IDLE, 5_000, rng)[1][2, "long"] > 4_900
    spent, calls = play(policy, busy, 300, rng)
    # what was gained before may be lost, and a call or two of each way on top
    assert spent[2, "long"] + spent[2, "brief"] < 10 + 10 + 100 / 5
    assert policy.state(SIZE)["level"] == 1
    assert policy.state(SIZE)["brief"]
    spent, calls = play(policy, busy, 30_000, rng)
    assert mean(spent, calls) < 1.05 * 0.31
    play(policy, IDLE, 20_000, rng)  # the longest rest is over by then
    spent, calls = play(policy, IDLE, 5_000, rng)
    assert calls[2, "long"] > 0.99 * calls.total()
    assert policy.state(SIZE)["level"] == 0
    assert not policy.state(SIZE)["brief"]
    assert policy.state(SIZE)["brief_failures"] == 0


def test_each_trial_that_fails_doubles_the_rest_up_to_a_bound(rng):
    policy = _runtime.ThreadPolicy(False)
    rests = []
    for _ in range(15_000):
        call = policy.choose(3, SIZE, 2)
        before = policy.state(SIZE)["failures"]
        policy.note(call, int((11 if call.threads == 2 else 1) * MS))
        state = policy.state(SIZE)
        if state["failures"] > before:
            rests.append(state["rest"])
    first = rests[0]
    assert 0.9 * REST * 15 * MS < rests[0] < 1.3 * REST * 15 * MS  # 10 lost, 5 of spinning after it
    assert [round(rest / first) for rest in rests[:6]] == [1, 2, 4, 8, 8, 8]


def test_what_is_lost_is_a_small_part_of_the_time(rng):
    policy = _runtime.ThreadPolicy(False)
    spent, _ = play(policy, {1: (often(0.3),), 2: (often(20), often(20))}, 50_000, rng)
    assert spent[2, "long"] < spent.total() / REST


def many(late_from, one=6.4, lateness=3):
    """Times of a call on up to 64 threads, where teams of so many and more are late."""
    return {
        n: (often(one / n + (lateness if n >= late_from else 0)),) * (1 if n == 1 else 2)
        for n in (1, 2, 4, 8, 16, 32, 64)
    }


@pytest.mark.parametrize(("late_from", "best"), [(128, 64), (64, 32), (16, 8)])
def test_half_the_threads_where_all_are_late(late_from, best, rng):
    """One other program on a machine of 64 processors is no reason to run on one."""
    policy = _runtime.ThreadPolicy()
    play(policy, many(late_from), 5_000, rng, wanted=64)
    _, calls = play(policy, many(late_from), 5_000, rng, wanted=64)
    used = Counter()
    for (threads, _), count in calls.items():
        used[threads] += count
    assert used[best] > 0.9 * calls.total(), used


def test_one_thread_where_every_team_is_late(rng):
    policy = _runtime.ThreadPolicy()
    times = many(2, one=0.5)
    play(policy, times, 5_000, rng, wanted=64)
    spent, calls = play(policy, times, 5_000, rng, wanted=64)
    assert mean(spent, calls) < 1.1 * 0.53


def test_small_calls_lose_and_large_ones_gain(rng):
    """Calls of different sizes decide for themselves."""
    policy = _runtime.ThreadPolicy(False)
    small, large = two(often(0.05), often(3), often(3)), two(often(40), often(24), often(24))
    for _ in range(40):
        play(policy, small, 200, rng, size=1 << 18)
        play(policy, large, 3, rng, size=50 << 20)
    assert policy.state(1 << 18)["level"] == 1
    assert policy.state(50 << 20)["level"] == 0


def test_looking_changes_nothing(rng):
    policy = _runtime.ThreadPolicy()
    play(policy, two(often(0.3), often(3), often(5)), 500, rng)
    before = policy.state(SIZE), policy.counts()
    assert policy.likely(SIZE, 2) == 1
    assert policy.likely(50 << 20, 2) == 2
    assert (policy.state(SIZE), policy.counts()) == before


def test_many_kinds_at_once(rng):
    """More than there are places for: each is then mostly new, and nothing goes wrong."""
    policy = _runtime.ThreadPolicy()
    for i in range(20_000):
        call = policy.choose(
            2 * int(rng.integers(5000)) + 1, 1 << int(rng.integers(17, 40)), 2 + i % 7
        )
        assert 1 <= call.threads <= 2 + i % 7
        policy.note(call, int(rng.integers(0, 1 << 40)) if i % 10 == 0 else 1000)
    assert policy.counts()[0] == 20_000


# ---- how it is told ----


def test_the_default_and_the_environment():
    code = """
import cnorm
print(cnorm._config.config()["thread_policy"])
with cnorm.num_threads(2, policy="fixed"):
    with cnorm.num_threads(3):
        print(cnorm._config.config()["thread_policy"])
cnorm.set_num_threads(2, policy="adaptive")
print(cnorm._config.config()["thread_policy"])
"""
    for value, first in (("", "adaptive"), ("adaptive", "adaptive"), (" Fixed ", "fixed")):
        done = _python(code, CNORM_THREAD_POLICY=value)
        assert done.stdout.split() == [first, "fixed", "adaptive"], done.stderr


def test_a_bad_value_is_named_in_one_line():
    done = _python("import cnorm", CNORM_THREAD_POLICY="quick")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: CNORM_THREAD_POLICY must be adaptive or fixed"), done.stderr
    assert "'quick'" in last
    done = subprocess.run(
        [sys.executable, "-m", "cnorm", "--json"],
        env=os.environ | {"CNORM_THREAD_POLICY": "1"},
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("cnorm: CNORM_THREAD_POLICY")
    assert done.returncode == 2


@pytest.mark.parametrize("function", [cnorm.set_num_threads, cnorm.num_threads])
def test_bad_policies(function):
    before = cnorm.get_num_threads(), _threads.policy()
    with pytest.raises(ValueError, match=rf"^{function.__name__}: policy must be .* got 'auto'"):
        with_block = function(before[0] + 1, policy="auto")
        with_block.__enter__()
    assert (cnorm.get_num_threads(), _threads.policy()) == before


def test_a_policy_is_a_threads_own():
    with cnorm.num_threads(2, policy="adaptive"):
        assert _threads.policy() == "adaptive"
        seen = []
        _run_together(lambda i: seen.append(_threads.policy()), 1)
        assert seen == [os.environ["CNORM_THREAD_POLICY"]]


# ---- in calls ----


@pytest.fixture
def lost():
    """The policy of this process, by which teams of calls of up to 32 MiB have just lost much."""
    policy = _runtime.ThreadPolicy(of_process=True)
    policy.reset()
    for n in range(17, 25):
        for _ in range(100):
            call = policy.choose(2 * n + 1, 1 << n, 2)
            policy.note(call, (100 if call.threads > 1 else 1) << n)
        assert policy.likely(1 << n, 2) == 1
    yield policy
    policy.reset()


@OPENMP
def test_explain_and_a_line_a_call_say_why(lost, capsys):
    from cnorm._call import observe

    x = np.ones((1024, 768), np.float32)
    with cnorm.num_threads(2, policy="adaptive"):
        plan = cnorm.explain(F.layer_norm, x, 768)
        assert (plan.step["threads"], plan.step["threads_allowed"]) == (1, 2)
        assert "1 of 2 for 1024 items: more would wait for processors" in str(plan)
        observe.set_verbose(True)
        try:
            F.layer_norm(x, 768)
        finally:
            observe.set_verbose(False)
        assert "threads:1 of 2: more would wait for processors,stores" in capsys.readouterr().err
    with cnorm.num_threads(2, policy="fixed"):
        plan = cnorm.explain(F.layer_norm, x, 768)
        assert (plan.step["threads"], plan.step["fewer_because"]) == (2, "")


@OPENMP
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_the_same_bits_with_and_without(operation, rng, lost):
    import digests

    for shape in [(16, 12, 30, 11), (1000, 48)]:
        if not operation.accepts(shape, 1):
            continue
        x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
        p = operation.draw(rng, shape, 1, np.float32)
        found = set()
        for policy in ("fixed", "adaptive", "adaptive"):
            with cnorm.num_threads(3, policy=policy):
                found.add(digests.digest(operation.run(F, x, dy, p)))
            if policy == "adaptive":
                lost.reset()
        assert len(found) == 1


def test_many_python_threads(rng):
    x = rng.normal(size=(16, 12, 30, 17)).astype(np.float32)
    jobs = [
        lambda: F.layer_norm(x, 17),
        lambda: F.group_norm(x, 3),
        lambda: F.batch_norm(x, training=True),
    ]
    _same_from_many_threads(jobs, policy="adaptive")


BUSY = """
import hashlib, json, time
import numpy as np, cnorm, cnorm.functional as F

x = np.random.default_rng(0).normal(size=(8, 64, 24, 24)).astype(np.float32)
rows = x.reshape(-1, 576)

def digest():
    y, mean, rstd = F.batch_norm(x, training=True, return_stats=True)
    back = F.batch_norm_backward(x, x, mean, rstd)
    arrays = (y, *back, F.layer_norm(rows, 576), F.local_response_norm(x[:2], 3))
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()

with cnorm.num_threads(1):
    found = {digest()}
cnorm.set_num_threads(2)
end = time.monotonic() + SECONDS
while time.monotonic() < end:
    found.add(digest())
calls, fewer, brief = cnorm._runtime.count_calls()
print(json.dumps({"bits": len(found), "calls": calls, "fewer": fewer, "brief": brief}))
"""


@OPENMP
def test_the_same_bits_on_a_busy_machine():
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        code = BUSY.replace("SECONDS", str(max(2.0, SECONDS)))
        done = _python(code, CNORM_THREAD_POLICY="adaptive")
    finally:
        for other in others:
            other.kill()
            other.wait()
    found = json.loads(done.stdout)
    assert found["bits"] == 1
    assert found["fewer"] or found["brief"], found


@LINUX
@OPENMP
def test_threads_that_make_others_wait_briefly_come_and_go():
    """A thread of ours has a team of its own, for which the runtime waits briefly."""
    code = """
import os, time
import numpy as np, cnorm, cnorm.functional as F
from cnorm._runtime import wait_briefly

def threads():
    return len(os.listdir("/proc/self/task"))

def until(n):
    end = time.monotonic() + 20
    while threads() != n and time.monotonic() < end:
        time.sleep(0.01)
    return threads() == n

processors = len(os.sched_getaffinity(0))
x = np.ones((1024, 768), np.float32)
with cnorm.num_threads(processors):
    expected = F.layer_norm(x, 768).tobytes()
    before = threads()
    for turn in range(5):
        wait_briefly(True, processors)
        ours = 2 if wait_briefly(True, processors) else 0  # LLVM's runtime has a call for it
        assert until(before + ours), (turn, before, threads())
        assert F.layer_norm(x, 768).tobytes() == expected
        wait_briefly(False, processors)
        assert until(before), (turn, before, threads())
    wait_briefly(True, processors)
pid = os.fork()
if pid == 0:
    with cnorm.num_threads(2, policy="adaptive"):
        os._exit(0 if F.layer_norm(x, 768).tobytes() == expected else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("all right")
"""
    done = _python(code)
    assert done.stdout.strip() == "all right", (done.returncode, done.stderr)


# ---- processors that this process may use ----


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = {"proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/docker/ab\n0::/\n"}
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"
TREES = {
    "version 2, in a container": ({"proc/self/cgroup": "0::/\n", "cpu.max": "150000 100000\n"}, 1),
    "version 2, no limit": ({"proc/self/cgroup": "0::/\n", "cpu.max": "max 100000\n"}, None),
    "version 2, a slice within a slice": (
        {
            "proc/self/cgroup": "0::/user.slice/job.service\n",
            "user.slice/job.service/cpu.max": "max 100000\n",
            "user.slice/cpu.max": "350000 100000\n",
        },
        3,
    ),
    "version 2, less than one": ({"proc/self/cgroup": "0::/\n", "cpu.max": "50000 100000\n"}, 1),
    "version 1, the container's own": (
        V1 | {f"cpu,cpuacct/{QUOTA}": "250000\n", f"cpu,cpuacct/{PERIOD}": "100000\n"},
        2,
    ),
    "version 1, the host's path": (
        V1
        | {f"cpu,cpuacct/docker/ab/{QUOTA}": "400000", f"cpu,cpuacct/docker/ab/{PERIOD}": "100000"}
        | {f"cpu,cpuacct/{QUOTA}": "-1\n", f"cpu,cpuacct/{PERIOD}": "100000\n"},
        4,
    ),
    "version 1, no limit": (V1 | {f"cpu/{QUOTA}": "-1\n", f"cpu/{PERIOD}": "100000\n"}, None),
    "both, version 2 elsewhere": (
        V1 | {"unified/cpu.max": "600000 100000\n", f"cpu/{QUOTA}": "-1\n", f"cpu/{PERIOD}": "9\n"},
        6,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/../..\n:\nx", "cpu.max": "a b c\n"}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("name", TREES)
def test_quotas_of_control_groups(name, tmp_path):
    files, limit = TREES[name]
    tree(tmp_path, {n if n.startswith("proc") else f"sys/fs/cgroup/{n}": files[n] for n in files})
    assert _threads._container_limit(tmp_path) == limit


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
@pytest.mark.skipif(len(_threads._numbers(_threads.Path("/proc/self/cgroup"))) < 1, reason="Linux")
@OPENMP
def test_the_default_follows_affinity_and_quota():
    code = """
import os, threading
import numpy as np, cnorm, cnorm.functional as F
from cnorm import _threads
os.sched_setaffinity(0, all_of_them := os.sched_getaffinity(0))
if len(all_of_them) < 2:
    print("all right")
    raise SystemExit
_threads._container_limit = lambda: None
many = cnorm.get_num_threads()
assert many == len(all_of_them), many
one = {min(all_of_them)}
seen = []
def pinned():
    os.sched_setaffinity(0, one)
    seen.append(cnorm.get_num_threads())
thread = threading.Thread(target=pinned)
thread.start(), thread.join()
assert seen == [1], seen
assert cnorm.get_num_threads() == many  # a thread's affinity is its own
os.sched_setaffinity(0, one)
assert cnorm.get_num_threads() == 1
os.sched_setaffinity(0, all_of_them)
assert cnorm.get_num_threads() == many
_threads._container_limit = lambda: 1
assert cnorm.get_num_threads() == 1
cnorm.set_num_threads(many)  # who says a number gets it
assert cnorm.get_num_threads() == many
print("all right")
"""
    done = _python(code)
    assert done.stdout.strip() == "all right", done.stderr
    bound = "import os, cnorm; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    bound += "print(cnorm.get_num_threads() == cnorm._threads._processors())"
    many = len(os.sched_getaffinity(0)) > 1 and _threads._container_limit() is None
    done = _python(bound, KMP_AFFINITY="granularity=fine")
    assert done.stdout.strip() == str(not many), done.stderr


def test_calls_do_not_look_it_up_each_time():
    code = """
import time
import numpy as np, cnorm, cnorm.functional as F
from cnorm import _threads
looked = []
_threads._container_limit = lambda: looked.append(1)
x = np.ones((256, 768), np.float32)
began = time.monotonic()
for _ in range(200):
    F.layer_norm(x, 768)
print(len(looked) <= 1 + (time.monotonic() - began) / 2)  # once in two seconds
"""
    done = _python(code, CNORM_THREAD_POLICY="adaptive")
    assert done.stdout.strip() == "True", done.stderr


def test_explaining_in_threads_takes_no_part(rng):
    policy = _runtime.ThreadPolicy(of_process=True)
    before = policy.counts()
    x = np.ones((1024, 768), np.float32)

    def explain(i):
        with cnorm.num_threads(2, policy="adaptive"):
            for _ in range(20):
                assert cnorm.explain(F.layer_norm, x, 768).step["threads_allowed"] == 2

    if _runtime.has_openmp():
        _run_together(explain, 4)
    assert policy.counts() == before
