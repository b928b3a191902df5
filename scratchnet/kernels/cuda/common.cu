// What all kernels share. It is put before every other file of this folder (launch.py).
//
// Arrays are channel-major, (C, H, W, N) in memory: neighbouring threads take neighbouring pictures n, so that what a warp
// reads is one piece of memory, and a filter's weight is the same for all of the warp. Where a batch has fewer than 32
// pictures a warp simply goes on to the next pixel: (h, w, n) is one linear index.
//
// Grids: blockIdx.y is the channel, blockIdx.x a share of its row; every loop strides over the grid, so that any number of
// blocks is right. There are no atomics: a block leaves what it added up in an array of parts, and a second pass adds these
// in the order of the blocks. The same shapes give the same bits, every time.
//
// T is what arrays are stored in (float, double, bfloat16), sum_t<T> what is computed in.

#ifndef SHARED  // a compiler for the host may have its own kind of shared memory
#define SHARED(type, name, size) __shared__ type name size
#endif

__device__ inline unsigned bits_of(float x) {
  union { float number; unsigned bits; } both;
  both.number = x;
  return both.bits;
}

// The upper half of a float's bits: its range, and 8 bits of precision. For storage only; to compute with, it is a float.
struct bfloat16 {
  unsigned short bits;
  bfloat16() = default;
  // To the nearest, ties to even; NaN stays NaN. The same bits either way.
  __device__ explicit bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    const unsigned all = bits_of(x);
    bits = x == x ? (all + 0x7fffu + (all >> 16 & 1u)) >> 16 : 0x7fffu;
#endif
  }
  __device__ explicit operator float() const {
    union { unsigned bits; float number; } both;
    both.bits = (unsigned)bits << 16;
    return both.number;
  }
};

template <class T> struct Sum { using type = T; };
template <> struct Sum<bfloat16> { using type = float; };
template <class T> using sum_t = typename Sum<T>::type;

// V numbers that are loaded and stored as one word of 16 bytes: the array must begin at a multiple of that.
template <class T, int V> struct alignas(V * sizeof(T)) Pack { T v[V]; };

template <class T, int V> __device__ Pack<T, V>& pack(T* x, int i) { return reinterpret_cast<Pack<T, V>*>(x)[i]; }
template <class T, int V> __device__ const Pack<T, V>& pack(const T* x, int i) {
  return reinterpret_cast<const Pack<T, V>*>(x)[i];
}

// Word i of an array, in what is computed in; and back.
template <class T, int V> __device__ void load(const T* x, int i, sum_t<T> (&v)[V]) {
  const Pack<T, V> p = pack<T, V>(x, i);
#pragma unroll
  for (int k = 0; k < V; ++k) v[k] = sum_t<T>(p.v[k]);
}
template <class T, int V> __device__ void store(T* x, int i, const sum_t<T> (&v)[V]) {
  Pack<T, V> p;
#pragma unroll
  for (int k = 0; k < V; ++k) p.v[k] = T(v[k]);
  pack<T, V>(x, i) = p;
}

__device__ inline int first_in_row() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline int row_stride() { return gridDim.x * blockDim.x; }
__device__ inline long long row_start(int m) { return (long long)blockIdx.y * m; }

template <class A> __device__ A clip6(A x) { return x < 0 ? A(0) : x > 6 ? A(6) : x; }         // (RELU6.1); NaN stays
template <class A> __device__ bool at_bound(A y) { return y <= 0 || y >= 6; }                   // never true of NaN

// Batch norm of a number, before any bound. Whatever asks whether y lay between the bounds makes y again, by this alone.
template <class A> __device__ A affine(A x, A mean, A scale, A bias) { return fma(scale, x - mean, bias); }

// dy, or 0 where ReLU6 held the output at a bound (RELU6.2), (DWF.3).
template <bool CLIP, class A> __device__ A through_clip(A dy, A x, A mean, A scale, A bias) {
  return CLIP && at_bound(affine(x, mean, scale, bias)) ? A(0) : dy;
}

// The sums over a block's threads, in thread 0: first in each warp, then over the warps, always in the same order.
template <class A, int K> __device__ void sum_block(A (&sums)[K]) {
  SHARED(A, parts, [K][32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int k = 0; k < K; ++k) {
    for (int offset = 16; offset; offset /= 2) sums[k] += __shfl_down_sync(0xffffffffu, sums[k], offset);
    if (lane == 0) parts[k][warp] = sums[k];
  }
  __syncthreads();
  if (threadIdx.x == 0)
    for (int k = 0; k < K; ++k)
      for (int w = 1; w < blockDim.x / 32; ++w) sums[k] += parts[k][w];
  __syncthreads();  // before the next call writes to parts
}

// How many numbers, their mean, and the sum of the squares of their distances from it.
template <class A> struct Moments { A count, mean, squares; };

// Chan, Golub and LeVeque 1979, eq. 2.1: exact however far from 0 the numbers lie, unlike Σx² - (Σx)²/n.
template <class A> __device__ void add_moments(Moments<A>& a, const Moments<A>& b) {
  if (b.count == 0) return;
  const A count = a.count + b.count, step = b.mean - a.mean;
  a.mean += step * (b.count / count);
  a.squares += b.squares + step * step * (a.count * b.count / count);
  a.count = count;
}

// One thread's numbers, as distances from the first of them: one pass, and no division before the end.
template <class A> struct Tally {
  A shift = 0, sum = 0, squares = 0;
  int count = 0;
  __device__ void add(A x) {
    if (count++ == 0) shift = x;
    const A d = x - shift;
    sum += d;
    squares += d * d;
  }
  template <int V> __device__ void add(const A (&x)[V]) {
    if (count == 0) shift = x[0];
    count += V;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const A d = x[k] - shift;
      sum += d;
      squares += d * d;
    }
  }
  __device__ Moments<A> moments() const {
    if (count == 0) return {0, 0, 0};
    return {A(count), shift + sum / count, squares - sum * (sum / count)};
  }
};

// This thread's share of row blockIdx.y of x (C, m).
template <class T, int V> __device__ Moments<sum_t<T>> share_of_row(const T* x, int m) {
  Tally<sum_t<T>> tally;
  const T* row = x + row_start(m);
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    const Pack<T, V> in = pack<T, V>(row, i);
    for (int k = 0; k < V; ++k) tally.add(sum_t<T>(in.v[k]));
  }
  return tally.moments();
}

// The moments of all of a block's threads, in thread 0; once in a kernel, since nothing waits behind it. Only lane 0 ends
// with all of a warp's: a lane that has none above it adds itself, which nobody reads.
template <class A> __device__ Moments<A> moments_of_block(Moments<A> own) {
  SHARED(Moments<A>, of_warps, [32]);
  for (int offset = 16; offset; offset /= 2) {
    Moments<A> other;
    other.count = __shfl_down_sync(0xffffffffu, own.count, offset);
    other.mean = __shfl_down_sync(0xffffffffu, own.mean, offset);
    other.squares = __shfl_down_sync(0xffffffffu, own.squares, offset);
    add_moments(own, other);
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < blockDim.x / 32; ++w) add_moments(own, of_warps[w]);
  return own;
}

// They too, at the block's place among the parts (C, blocks, 3).
template <class A> __device__ void write_moments(Moments<A> own, A* parts) {
  const Moments<A> all = moments_of_block(own);
  if (threadIdx.x == 0) {
    A* to = parts + 3 * ((long long)blockIdx.y * gridDim.x + blockIdx.x);
    to[0] = all.count;
    to[1] = all.mean;
    to[2] = all.squares;
  }
}

// And the sums, at its place among the parts (C, blocks, K).
template <class A, int K> __device__ void write_sums(A (&sums)[K], A* parts) {
  sum_block(sums);
  if (threadIdx.x == 0)
#pragma unroll
    for (int k = 0; k < K; ++k) parts[((long long)blockIdx.y * gridDim.x + blockIdx.x) * K + k] = sums[k];
}
