// Runs CUDA C++ on the CPU: put before a kernel's source and compiled by g++, it makes every kernel a function of the host.
//
// The blocks of a grid run one after the other. The threads of a block are fibers, each with a stack of its own, so that a
// barrier or a shuffle means what it means on a GPU: nobody goes on before all are there. (ucontext makes a fiber; from
// then on _setjmp and _longjmp switch, which call no operating system.) In which order threads and blocks run is a
// parameter, and so is whether the warps keep abreast, or each goes as far ahead as barriers let it; where a barrier is
// missing, the result depends on it. Shared memory is full of NaN at the beginning of every block, so that what nobody
// wrote is seen.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace host {

enum State { RUNS, AT_BARRIER, IN_WARP, DONE };  // IN_WARP: waits for the other threads of its warp

struct Fiber {
  std::vector<char> stack;
  jmp_buf here;  // where it goes on
  State state = RUNS;
};

inline jmp_buf scheduler;
inline std::vector<Fiber> fibers;
inline int current = -1;  // the fiber that runs; -1: threads are plain calls, and nothing may wait
inline void (*body)() = nullptr;
inline const char* error = nullptr;
inline dim3 thread_index, block_index, block_dim, grid_dim;
inline uint64_t exchange[1024];  // what the threads of a warp show each other
inline unsigned long long block_number = 0;

inline void wait(State state) {
  if (current < 0) {
    error = "a thread waits for others";
    return;
  }
  fibers[current].state = state;
  if (!_setjmp(fibers[current].here)) _longjmp(scheduler, 1);
}

// A fiber's whole life: one thread after the other, of one block after the other.
inline void run_fiber() {
  for (;;) {
    body();
    wait(DONE);
  }
}

// Let fiber i run until it waits or is done. By itself: what a function changes behind _setjmp is lost when it returns.
__attribute__((noinline)) inline void resume(int i) {
  current = i;
  thread_index.x = i;
  Fiber& f = fibers[i];
  if (_setjmp(scheduler)) return;
  if (!f.stack.empty()) _longjmp(f.here, 1);
  f.stack.resize(64 * 1024);
  static ucontext_t first;
  getcontext(&first);
  first.uc_stack.ss_sp = f.stack.data();
  first.uc_stack.ss_size = f.stack.size();
  makecontext(&first, run_fiber, 0);
  setcontext(&first);
}

// Fills an array of shared memory with NaN (all bits 1) where this block sees it for the first time.
inline void fill(void* memory, size_t size, unsigned long long& filled) {
  if (filled == block_number) return;
  filled = block_number;
  memset(memory, 0xFF, size);
}

template <class T> T shuffle(T value, int lane) {
  const int thread = thread_index.x, warp = thread & ~31;
  memcpy(&exchange[thread], &value, sizeof value);
  wait(IN_WARP);
  T other = value;
  if (lane >= 0 && lane < 32) memcpy(&other, &exchange[warp + lane], sizeof other);
  wait(IN_WARP);
  return other;
}

// Lets every fiber run until it waits or ends, then whoever may go on: first the warps, then, at a barrier, the block. With
// `ahead` only one warp runs, the first in the order that can, until all its threads are at a barrier or done.
inline const char* run_block(const std::vector<int>& order, bool ahead) {
  const size_t n = order.size();
  for (size_t i = 0; i < n; ++i) fibers[i].state = RUNS;
  for (;;) {
    int only = -1;
    for (int i : order)
      if (fibers[i].state == RUNS && (only < 0 || i / 32 == only)) {
        if (ahead) only = i / 32;
        resume(i);
      }
    size_t done = 0;
    bool somebody_goes_on = false;
    for (size_t first = 0; first < n; first += 32) {
      size_t count[4] = {0, 0, 0, 0};
      for (size_t i = first; i < std::min(n, first + 32); ++i) ++count[fibers[i].state];
      if (count[IN_WARP] && count[AT_BARRIER]) return "some threads of a warp are at a barrier, others at a shuffle";
      if (count[IN_WARP] && count[DONE]) return "a shuffle that some threads of the warp never reach";
      for (size_t i = first; i < std::min(n, first + 32); ++i)
        if (fibers[i].state == IN_WARP) {
          fibers[i].state = RUNS;
          somebody_goes_on = true;
        }
      somebody_goes_on |= count[RUNS] > 0;
      done += count[DONE];
    }
    if (somebody_goes_on) continue;
    if (done == n) return nullptr;
    if (done) return "a barrier that some threads of the block never reach";
    for (size_t i = 0; i < n; ++i) fibers[i].state = RUNS;
  }
}

// order 0: as they are numbered; 1: backwards; 2 and 3: shuffled, differently. 4 to 7: the same, and a warp goes ahead.
inline std::vector<int> in_order(size_t n, unsigned order) {
  std::vector<int> numbers(n);
  for (size_t i = 0; i < n; ++i) numbers[i] = order == 1 ? n - 1 - i : i;
  uint32_t state = 12345u + order;
  if (order > 1)
    for (size_t i = n; i > 1; --i) {
      state = state * 1664525u + 1013904223u;
      std::swap(numbers[i - 1], numbers[(state >> 8) % i]);
    }
  return numbers;
}

template <class Call> const char* run(Call& call, const unsigned* size, int order, int threads_wait) {
  static Call* of_all;
  of_all = &call;
  body = [] { (*of_all)(); };
  grid_dim = dim3(size[0], size[1]);
  block_dim = dim3(size[2]);
  const size_t n = size[2];
  if (n > 1024) return "more than 1024 threads a block";
  if (size[1] > 65535) return "more than 65535 blocks along y";
  const bool ahead = order >= 4;
  const auto threads = in_order(n, order % 4), numbers = in_order(size_t(size[0]) * size[1], order % 4);
  if (threads_wait && fibers.empty()) fibers.resize(1024);  // all at once: a fiber must not move
  error = nullptr;
  for (int number : numbers) {
    ++block_number;
    block_index = dim3(number % size[0], number / size[0]);
    if (threads_wait) {
      error = run_block(threads, ahead);
    } else {
      current = -1;
      for (int i : threads) {
        thread_index.x = i;
        body();
      }
    }
    if (error) break;
  }
  if (error) fibers.clear();  // some are in the middle of the kernel
  return error;
}

template <class... A, size_t... I>
const char* launch(void (*kernel)(A...), void** args, const unsigned* size, int order, int threads_wait,
                   std::index_sequence<I...>) {
  auto call = [&] { kernel(*reinterpret_cast<std::remove_const_t<A>*>(args[I])...); };
  return run(call, size, order, threads_wait);
}

template <class... A> constexpr std::index_sequence_for<A...> indices(void (*)(A...)) { return {}; }
template <class... A> int widths(void (*)(A...), int* out) {
  const int all[] = {int(sizeof(A))..., 0};
  memcpy(out, all, sizeof(int) * sizeof...(A));
  return sizeof...(A);
}

}  // namespace host

#define threadIdx host::thread_index
#define blockIdx host::block_index
#define blockDim host::block_dim
#define gridDim host::grid_dim
#define SHARED(type, name, size)           \
  static type name size;                   \
  static unsigned long long name##_filled; \
  host::fill(name, sizeof(name), name##_filled)

inline void __syncthreads() { host::wait(host::AT_BARRIER); }
template <class T> T __shfl_down_sync(unsigned, T value, int offset) {
  const int lane = host::thread_index.x % 32 + offset;
  return host::shuffle(value, lane);
}

// A kernel under a plain name: how to start it, and how many bytes each parameter has.
#define EXPORT(symbol, ...)                                                                                \
  extern "C" const char* launch_##symbol(void** args, const unsigned* size, int order, int threads_wait) { \
    return host::launch(__VA_ARGS__, args, size, order, threads_wait, host::indices(__VA_ARGS__));         \
  }                                                                                                        \
  extern "C" int widths_##symbol(int* out) { return host::widths(__VA_ARGS__, out); }
