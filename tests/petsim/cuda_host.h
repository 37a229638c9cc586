/* Lets CUDA kernels compile as plain C++ (c++ -include cuda_host.h -x c++ joseph.cu).

   The threads of a block are coroutines that run one after the other, each up to the next barrier, the first thread first in
   every other block and the last in the rest. A missing barrier is therefore found every time: a thread reads what another
   has not written yet, or overwrites what another has still to read. Shared memory starts as NaN. */

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <ucontext.h>
#include <vector>

using std::max;
using std::min;

static long long host_block;
static int host_thread, host_threads;
static std::vector<float> host_rows;
static std::vector<ucontext_t> host_contexts;
static ucontext_t host_scheduler;
static std::vector<int> host_at_barrier;

static inline void host_sync()
{
    host_at_barrier[host_thread] = 1;
    swapcontext(&host_contexts[host_thread], &host_scheduler);
}

static inline float host_bits_to_float(unsigned bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int host_float_to_bits(float value)
{
    int bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double host_turn(double half_turns) { return 3.141592653589793 * half_turns; }

static inline double cospi(double x) { return cos(host_turn(x)); }

static inline void sincospi(double x, double *sine, double *cosine)
{
    *sine = sin(host_turn(x));
    *cosine = cos(host_turn(x));
}

/* Run body() in every thread of every block, with `shared` floats of shared memory. Returns what went wrong, or null. */
template <class Body> static const char *host_run(Body body, long long blocks, int threads, int shared)
{
    static Body *current;
    static std::vector<std::vector<char>> stacks;
    const int stack = 1 << 17;
    const float guard = 12345.0f;
    current = &body;
    host_threads = threads;
    host_contexts.resize(threads);
    stacks.resize(threads, std::vector<char>(stack));
    for (host_block = 0; host_block < blocks; ++host_block) {
        host_rows.assign(shared + 1, std::numeric_limits<float>::quiet_NaN());
        host_rows[shared] = guard;
        host_at_barrier.assign(threads, 1);
        for (int t = 0; t < threads; ++t) {
            getcontext(&host_contexts[t]);
            host_contexts[t].uc_stack.ss_sp = stacks[t].data();
            host_contexts[t].uc_stack.ss_size = stack;
            host_contexts[t].uc_link = &host_scheduler;
            makecontext(&host_contexts[t], static_cast<void (*)()>([] { (*current)(); }), 0);
        }
        for (int waiting = threads; waiting;) {
            waiting = 0;
            for (int turn = 0; turn < threads; ++turn) {
                host_thread = host_block % 2 ? threads - 1 - turn : turn;
                if (!host_at_barrier[host_thread])
                    continue;
                host_at_barrier[host_thread] = 0;
                swapcontext(&host_scheduler, &host_contexts[host_thread]);
                waiting += host_at_barrier[host_thread];
            }
            if (waiting && waiting != threads)
                return "some threads of a block wait at a barrier, others have ended";
        }
        if (host_rows[shared] != guard)
            return "a block wrote beyond its shared memory";
    }
    return nullptr;
}

/* A kernel becomes a function of its parameters, blocks, threads a block and floats of shared memory. */
#define KERNEL(name, Type)                                                                                                 \
    static void name##_body(const Type &g);                                                                                \
    extern "C" int name##_parameter_bytes() { return sizeof(Type); }                                                       \
    extern "C" const char *name(const Type *g, long long blocks, int threads, int shared)                                  \
    {                                                                                                                      \
        auto body = [g] { name##_body(*g); };                                                                              \
        return host_run(body, blocks, threads, shared);                                                                    \
    }                                                                                                                      \
    static void name##_body(const Type &g)
#define DEVICE static inline
#define SHARED static
#define SHARED_ROWS(name) float *const name = host_rows.data()
#define UNROLL
#define THREAD host_thread
#define THREADS host_threads
#define BLOCK host_block
#define SYNC host_sync()
#define ATOMIC_ADD(address, value) (*(address) += (value))
#define NEXT(counter) ((*(counter))++)
#define ATOMIC_MAX(address, value) (*(address) = max(*(address), value))
#define BITS_TO_FLOAT(bits) host_bits_to_float(bits)
#define FLOAT_TO_BITS(value) host_float_to_bits(value)
