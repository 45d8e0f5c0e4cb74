// Runs kernels.cu without a GPU, one block after another: a block's threads are fibers that take
// turns wherever they wait for each other. Slow, and exact in what it computes. `KERNELS` names the
// file, with its inline PTX replaced (see kernels_on_cpu.py).

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static  // one block at a time

struct uint4 {
    unsigned x, y, z, w;
};
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct Index {
    unsigned x;
};
static Index threadIdx, blockIdx, blockDim;
static float scores[12 * 1024];  // 48 KiB, of which a launch asks for some

static float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::exp2f;

// --- Fibers ---------------------------------------------------------------------------------------

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool ended;
};
struct Barrier {
    unsigned waiting = 0, rounds = 0;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static std::function<void()> body;
static Barrier of_block, of_warps[32];
static float exchanged[1024];

static void start() {
    body();
    fibers[threadIdx.x].ended = true;
    swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

static void wait(Barrier &barrier, unsigned count) {
    const unsigned round = barrier.rounds;
    if (++barrier.waiting == count) {
        barrier.waiting = 0;
        barrier.rounds++;
    }
    while (barrier.rounds == round) swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

static void __syncthreads() { wait(of_block, blockDim.x); }

static float __shfl_xor_sync(unsigned, float x, int distance) {
    const unsigned own = threadIdx.x;
    exchanged[own] = x;
    wait(of_warps[own / 32], 32);
    const float other = exchanged[own ^ distance];
    wait(of_warps[own / 32], 32);
    return other;
}

#include KERNELS

// Every block of a grid, each with garbage where the scores will be. Whether none has written beyond
// the shared memory that was asked for.
static bool launch(
    unsigned blocks, unsigned threads, unsigned shared_bytes, std::function<void()> kernel) {
    constexpr size_t STACK_BYTES = 64 * 1024;
    bool within = true;
    body = std::move(kernel);
    std::minstd_rand chance;
    blockDim.x = threads;
    fibers.resize(threads);
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        for (float &score : scores) score = NAN;
        for (auto &fiber : fibers) {
            if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
            fiber.ended = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack = {fiber.stack.get(), 0, STACK_BYTES};
            makecontext(&fiber.context, start, 0);
        }
        // Warps in no order, some far ahead of others: whoever should have waited is caught.
        for (unsigned ended = 0; ended < threads;) {
            const unsigned first = chance() % (threads / 32) * 32;
            for (unsigned thread = first; thread < first + 32; thread++) {
                if (fibers[thread].ended) continue;
                threadIdx.x = thread;
                swapcontext(&scheduler, &fibers[thread].context);
                ended += fibers[thread].ended;
            }
        }
        for (size_t i = shared_bytes / sizeof *scores; i < std::size(scores); i++)
            within &= std::isnan(scores[i]);
    }
    return within;
}

extern "C" {
#ifdef WIDTH
bool launch_add_norm(
    unsigned blocks, unsigned threads, unsigned shared_bytes, uint4 *stream, uint4 *change, uint4 *weight, uint4 *bias,
    uint4 *sum, uint4 *normalised, float epsilon) {
    return launch(blocks, threads, shared_bytes, [=] { add_norm(stream, change, weight, bias, sum, normalised, epsilon); });
}
#endif
#ifdef QUERIES
bool launch_attend_image(
    unsigned blocks, unsigned threads, unsigned shared_bytes, uint4 *query, uint4 *keys, uint4 *values, number *out,
    long long heads, long long states, long long image_stride, long long head_stride,
    long long state_stride, float scale) {
    return launch(blocks, threads, shared_bytes, [=] {
        attend_image(
            query, keys, values, out, heads, states, image_stride, head_stride, state_stride, scale);
    });
}
bool launch_attend_tokens(
    unsigned blocks, unsigned threads, unsigned shared_bytes, uint4 *joined, uint4 *keys, uint4 *values, long long *places,
    number *mask, number *out, long long heads, long long slots, float scale) {
    return launch(blocks, threads, shared_bytes, [=] {
        attend_tokens(joined, keys, values, places, mask, out, heads, slots, scale);
    });
}
#endif
}
