// Three pieces of the model as CUDA kernels of our own, where PyTorch's take several or are made for
// other shapes. nvrtc.py compiles this as it is needed; kernels.py calls it, and defines:
//
//   BFLOAT16   where numbers are that, else they are float16
//   WIDTH      of what `add_norm` normalises
//   SIZE       numbers per head
//   QUERIES    per image, in `attend_image` and `attend_tokens`
//
// Numbers are read and written eight at a time, 16 bytes, and computed with in float32.

typedef unsigned short number;

#ifdef BFLOAT16
__device__ __forceinline__ float widened(unsigned bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ number narrowed(float x) {
    number y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
__device__ __forceinline__ float widened(unsigned bits) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((number)bits));
    return y;
}
__device__ __forceinline__ number narrowed(float x) {
    number y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif

__device__ __forceinline__ void unpack(const uint4 &packed, float (&x)[8]) {
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = widened(words[i] & 0xffffu);
        x[2 * i + 1] = widened(words[i] >> 16);
    }
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = narrowed(x[2 * i]) | (unsigned)narrowed(x[2 * i + 1]) << 16;
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// The sum over lanes whose numbers differ by less than `lanes`, a power of two; all get it.
__device__ __forceinline__ float sum_of_lanes(float x, int lanes) {
    for (int distance = lanes / 2; distance; distance /= 2)
        x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

#ifdef WIDTH
// The sum over a block of whole warps; all get it.
__device__ __forceinline__ float sum_of_block(float x) {
    __shared__ float warps[32];
    x = sum_of_lanes(x, 32);
    __syncthreads();  // all have read what was there before
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += warps[warp];
    return sum;
}

// stream + change, rounded, and its layer norm: a block per row, eight numbers a thread.
// All are [rows, WIDTH]; `change` may be null, and `sum`, where nobody wants it.
extern "C" __global__ void add_norm(
    const uint4 *__restrict__ stream, const uint4 *__restrict__ change,
    const uint4 *__restrict__ weight, const uint4 *__restrict__ bias, uint4 *__restrict__ sum,
    uint4 *__restrict__ normalised, float epsilon) {
    constexpr int PACKS = WIDTH / 8;
    const bool inside = threadIdx.x < PACKS;
    const size_t at = (size_t)blockIdx.x * PACKS + threadIdx.x;
    float x[8] = {}, scaled[8], shifted[8], total = 0, squares = 0;
    if (inside) {
        unpack(stream[at], x);
        unpack(weight[threadIdx.x], scaled);
        unpack(bias[threadIdx.x], shifted);
        if (change) {
            float added[8];
            unpack(change[at], added);
            for (int i = 0; i < 8; i++) x[i] += added[i];
            const uint4 rounded = pack(x);
            if (sum) sum[at] = rounded;
            unpack(rounded, x);
        }
    }
    for (int i = 0; i < 8; i++) total += x[i];
    const float mean = sum_of_block(total) / WIDTH;
    for (int i = 0; i < 8; i++) {
        x[i] = inside ? x[i] - mean : 0;
        squares += x[i] * x[i];
    }
    const float scale = rsqrtf(sum_of_block(squares) / WIDTH + epsilon);
    if (inside) {
        for (int i = 0; i < 8; i++) shifted[i] += x[i] * scale * scaled[i];
        normalised[at] = pack(shifted);
    }
}
#endif

#ifdef QUERIES
// So many lanes share a key, eight numbers each; so many keys are on their way at once.
constexpr int LANES = SIZE / 8, AHEAD = 4;

// Attention of one image's queries in one head, by a whole block of THREADS.
// Strides are counted in packs of eight numbers; `mask` is [QUERIES, states], 0 or -inf, or null.
// `scores` is shared memory: QUERIES numbers for every state and, later, for all warps' results.
template <int THREADS>
__device__ __forceinline__ void attend(
    const uint4 *query, int query_stride, const uint4 *keys, const uint4 *values, int state_stride,
    const number *mask, int states, float scale, number *out, int out_stride, float *scores) {
    constexpr int GROUPS = THREADS / LANES, WARPS = THREADS / 32;
    __shared__ float sums[QUERIES];
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;

    float q[QUERIES][8];
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        unpack(query[i * query_stride + lane], q[i]);
        for (int j = 0; j < 8; j++) q[i][j] *= scale;
    }
    for (int base = 0; base < states; base += GROUPS * AHEAD) {
        uint4 loaded[AHEAD];
#pragma unroll
        for (int ahead = 0; ahead < AHEAD; ahead++) {
            const int state = base + ahead * GROUPS + group;
            if (state < states) loaded[ahead] = keys[state * state_stride + lane];
        }
#pragma unroll
        for (int ahead = 0; ahead < AHEAD; ahead++) {
            const int state = base + ahead * GROUPS + group;
            float key[8];
            unpack(loaded[ahead], key);
#pragma unroll
            for (int i = 0; i < QUERIES; i++) {
                float product = 0;
                for (int j = 0; j < 8; j++) product += q[i][j] * key[j];
                product = sum_of_lanes(product, LANES);
                if (lane == 0 && state < states)
                    scores[i * states + state] =
                        mask ? product + widened(mask[i * states + state]) : product;
            }
        }
    }
    __syncthreads();

    // A softmax per warp; scale contains log2(e), hence powers of two.
    for (int i = threadIdx.x / 32; i < QUERIES; i += WARPS) {
        float most = -1e30f, sum = 0;
        for (int state = threadIdx.x % 32; state < states; state += 32)
            most = fmaxf(most, scores[i * states + state]);
        for (int distance = 16; distance; distance /= 2)
            most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
        for (int state = threadIdx.x % 32; state < states; state += 32) {
            const float power = exp2f(scores[i * states + state] - most);
            scores[i * states + state] = power;
            sum += power;
        }
        sum = sum_of_lanes(sum, 32);
        if (threadIdx.x % 32 == 0) sums[i] = sum;
    }
    __syncthreads();

    float mean[QUERIES][8] = {};
    for (int base = 0; base < states; base += GROUPS * AHEAD) {
        uint4 loaded[AHEAD];
#pragma unroll
        for (int ahead = 0; ahead < AHEAD; ahead++) {
            const int state = base + ahead * GROUPS + group;
            if (state < states) loaded[ahead] = values[state * state_stride + lane];
        }
#pragma unroll
        for (int ahead = 0; ahead < AHEAD; ahead++) {
            const int state = base + ahead * GROUPS + group;
            if (state >= states) continue;
            float value[8];
            unpack(loaded[ahead], value);
#pragma unroll
            for (int i = 0; i < QUERIES; i++) {
                const float power = scores[i * states + state];
                for (int j = 0; j < 8; j++) mean[i][j] += power * value[j];
            }
        }
    }
    __syncthreads();
    float *parts = scores;  // [WARPS, QUERIES, SIZE]
#pragma unroll
    for (int i = 0; i < QUERIES; i++)
        for (int j = 0; j < 8; j++) {
            for (int distance = LANES; distance < 32; distance *= 2)
                mean[i][j] += __shfl_xor_sync(~0u, mean[i][j], distance);
            if (threadIdx.x % 32 < LANES)
                parts[(threadIdx.x / 32 * QUERIES + i) * SIZE + lane * 8 + j] = mean[i][j];
        }
    __syncthreads();
    for (int at = threadIdx.x; at < QUERIES * SIZE; at += THREADS) {
        float sum = 0;
        for (int warp = 0; warp < WARPS; warp++) sum += parts[warp * QUERIES * SIZE + at];
        out[at / SIZE * out_stride + at % SIZE] = narrowed(sum / sums[at / SIZE]);
    }
}

// Queries and out are [B, QUERIES, heads, SIZE]. Keys and values have their numbers of a head side
// by side, and any strides else. One block per image and head.
extern "C" __global__ void __launch_bounds__(256, 3) attend_image(
    const uint4 *__restrict__ query, const uint4 *__restrict__ keys,
    const uint4 *__restrict__ values, number *__restrict__ out, long long heads, long long states,
    long long image_stride, long long head_stride, long long state_stride, float scale) {
    extern __shared__ float scores[];
    const long long image = blockIdx.x / heads, head = blockIdx.x % heads;
    const size_t first = image * QUERIES * heads + head;
    const size_t seen = image * image_stride + head * head_stride;
    attend<256>(
        query + first * LANES, heads * LANES, keys + seen, values + seen, state_stride,
        nullptr, states, scale, out + first * SIZE, heads * SIZE, scores);
}

// Puts the new tokens' keys and values to their slots, and attends to all that are seen.
// `joined` is [B, QUERIES, 3, heads, SIZE]: queries, keys, values; keys and values of before are
// [B, heads, slots, SIZE]. One block per image and head.
extern "C" __global__ void __launch_bounds__(128) attend_tokens(
    const uint4 *__restrict__ joined, uint4 *keys, uint4 *values,
    const long long *__restrict__ places, const number *__restrict__ mask,
    number *__restrict__ out, long long heads, long long slots, float scale) {
    extern __shared__ float scores[];
    const long long image = blockIdx.x / heads, head = blockIdx.x % heads;
    const size_t part = heads * LANES;
    joined += image * QUERIES * 3 * part + head * LANES;
    keys += blockIdx.x * slots * LANES;
    values += blockIdx.x * slots * LANES;
    for (int at = threadIdx.x; at < QUERIES * LANES; at += blockDim.x) {
        const int i = at / LANES, lane = at % LANES;
        keys[places[i] * LANES + lane] = joined[(3 * i + 1) * part + lane];
        values[places[i] * LANES + lane] = joined[(3 * i + 2) * part + lane];
    }
    __syncthreads();
    attend<128>(
        joined, 3 * part, keys, values, LANES, mask + image * QUERIES * slots, slots, scale,
        out + (image * QUERIES * heads + head) * SIZE, heads * SIZE, scores);
}
#endif
