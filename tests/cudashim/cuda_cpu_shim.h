// CUDA on the CPU, for tests: the names a .cu file uses, defined so that g++ compiles the file unchanged.
//
// One CUDA block runs on one OpenMP thread. A kernel without barriers is a plain loop over its threads. A kernel with
// barriers or shuffles gets one fiber (ucontext) per CUDA thread; a fiber runs until it waits, and a barrier opens when
// every living fiber of its block (or warp) waits at it. `order` picks who runs first (0 forward, 1 reverse, 2 and up
// shuffled), blocks included, so that a missing barrier shows as a result that depends on the order.
//
// Not here, on purpose: textures, cooperative groups, tensor cores, half precision, masks of partial warps.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define warpSize 32

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct float2 { float x, y; };
struct float3 { float x, y, z; };
struct float4 { float x, y, z, w; };
struct double2 { double x, y; };
struct int2 { int x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }

namespace cudashim {

enum class Wait { ready, warp, block, done };

struct Fiber {
  ucontext_t context;
  char* stack;
  Wait wait;
  uint3 thread;
};

inline thread_local uint3 thread_index, block_index;
inline thread_local dim3 block_dim, grid_dim;
inline thread_local Fiber* current = nullptr;
inline thread_local ucontext_t scheduler;
inline thread_local void (*body)(void*) = nullptr;
inline thread_local void* body_argument = nullptr;
inline thread_local std::vector<double> dynamic_shared;  // doubles, for the alignment
inline thread_local uint64_t exchange[1024];             // one slot a thread, for the shuffles

constexpr size_t STACK_BYTES = 256 * 1024;

inline void wait_for(Wait what) {
  current->wait = what;
  swapcontext(&current->context, &scheduler);
}

inline void fiber_main() {
  body(body_argument);
  wait_for(Wait::done);
}

inline int linear_thread() {
  return thread_index.x + block_dim.x * (thread_index.y + block_dim.y * thread_index.z);
}

// The order in which the n members of a block or grid run; `state` makes every shuffled round a different one.
inline void arrange(std::vector<int>& members, int order, unsigned& state) {
  if (order == 1) std::reverse(members.begin(), members.end());
  if (order < 2) return;
  for (int i = (int)members.size() - 1; i > 0; i--) {
    state = state * 1664525u + 1013904223u;
    std::swap(members[i], members[(state >> 8) % (i + 1)]);
  }
}

inline uint3 unravel(int i, dim3 d) { return {i % d.x, (i / d.x) % d.y, i / (d.x * d.y)}; }

// Open the barriers at which nobody is missing: a warp's as soon as no fiber of the warp could still come, the block's
// when all living fibers wait there. Returns whether any fiber is alive.
inline bool open_barriers(std::vector<Fiber>& pool, int n) {
  bool alive = false, block_waits = true;
  for (int i = 0; i < n; i++) {
    if (pool[i].wait == Wait::warp) pool[i].wait = Wait::ready;
    alive |= pool[i].wait != Wait::done;
    block_waits &= pool[i].wait == Wait::block || pool[i].wait == Wait::done;
  }
  if (block_waits)
    for (int i = 0; i < n; i++)
      if (pool[i].wait == Wait::block) pool[i].wait = Wait::ready;
  return alive;
}

inline void start_fiber(Fiber& fiber, uint3 thread) {
  fiber.wait = Wait::ready;
  fiber.thread = thread;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = STACK_BYTES;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, (void (*)())fiber_main, 0);
}

template <class F>
void run_fibers(F& f, std::vector<int>& members, int order) {
  static thread_local std::vector<Fiber> pool;
  int n = (int)members.size();
  while ((int)pool.size() < n) pool.push_back({{}, (char*)malloc(STACK_BYTES), Wait::done, {}});
  body = [](void* p) { (*(F*)p)(); };
  body_argument = &f;
  for (int i = 0; i < n; i++) start_fiber(pool[i], unravel(i, block_dim));
  unsigned state = 12345u + order;
  do {
    arrange(members, order, state);
    for (int i : members) {
      if (pool[i].wait != Wait::ready) continue;
      current = &pool[i];
      thread_index = pool[i].thread;
      swapcontext(&scheduler, &pool[i].context);
    }
  } while (open_barriers(pool, n));
}

template <class F>
void run_block(F& f, bool fibers, int order) {
  std::vector<int> members(block_dim.x * block_dim.y * block_dim.z);
  std::iota(members.begin(), members.end(), 0);
  if (fibers) return run_fibers(f, members, order);
  unsigned state = 12345u + order;
  arrange(members, order, state);
  for (int i : members) {
    thread_index = unravel(i, block_dim);
    f();
  }
}

template <class F>
void launch(const unsigned* g, const unsigned* b, size_t shared_bytes, bool fibers, int order, F f) {
  dim3 grid{g[0], g[1], g[2]}, block{b[0], b[1], b[2]};
  std::vector<int> blocks((size_t)grid.x * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  unsigned state = 777u + order;
  arrange(blocks, order, state);
#pragma omp parallel
  {
    block_dim = block;
    grid_dim = grid;
    dynamic_shared.resize((shared_bytes + sizeof(double) - 1) / sizeof(double));
#pragma omp for schedule(dynamic, 8)
    for (size_t i = 0; i < blocks.size(); i++) {
      block_index = unravel(blocks[i], grid);
      run_block(f, fibers, order);
    }
  }
}

template <class T>
T read_lane(T value, int source_lane) {
  int base = linear_thread() / 32 * 32, lane = linear_thread() % 32;
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move at most 8 bytes");
  memcpy(&exchange[base + lane], &value, sizeof(T));
  wait_for(Wait::warp);
  T result;
  memcpy(&result, &exchange[base + source_lane], sizeof(T));
  wait_for(Wait::warp);
  return result;
}

template <class To, class From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size wanted");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

}  // namespace cudashim

#define threadIdx cudashim::thread_index
#define blockIdx cudashim::block_index
#define blockDim cudashim::block_dim
#define gridDim cudashim::grid_dim

// ---- barriers, shuffles, votes ----
static inline void __syncthreads() { cudashim::wait_for(cudashim::Wait::block); }
static inline void __syncwarp(unsigned = 0xffffffffu) { cudashim::wait_for(cudashim::Wait::warp); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline int lane_() { return cudashim::linear_thread() % 32; }
// Lanes are grouped by `width`, and a lane whose source lies outside its group keeps its own value, as on the device.
template <class T>
static inline T __shfl_sync(unsigned, T v, int s, int width = 32) {
  return cudashim::read_lane(v, lane_() / width * width + (s & (width - 1)));
}
template <class T>
static inline T __shfl_down_sync(unsigned, T v, unsigned d, int width = 32) {
  return cudashim::read_lane(v, lane_() % width + (int)d < width ? lane_() + (int)d : lane_());
}
template <class T>
static inline T __shfl_up_sync(unsigned, T v, unsigned d, int width = 32) {
  return cudashim::read_lane(v, lane_() % width >= (int)d ? lane_() - (int)d : lane_());
}
template <class T>
static inline T __shfl_xor_sync(unsigned, T v, int m, int width = 32) {
  return cudashim::read_lane(v, lane_() / width == (lane_() ^ m) / width ? lane_() ^ m : lane_());
}
static inline unsigned __ballot_sync(unsigned, int vote) {
  unsigned all = 0;
  for (int i = 0; i < 32; i++) all |= (unsigned)(cudashim::read_lane(vote, i) != 0) << i;
  return all;
}
static inline int __any_sync(unsigned m, int vote) { return __ballot_sync(m, vote) != 0; }
static inline int __all_sync(unsigned m, int vote) { return __ballot_sync(m, !vote) == 0; }

// ---- atomics ----
template <class T>
using Atomic = std::common_type_t<T>;  // lets `atomicAdd(&count, 1)` take its type from the pointer alone
template <class T, class F>
static inline T atomic_update_(T* p, F next) {
  T old, wanted;
  __atomic_load(p, &old, __ATOMIC_SEQ_CST);
  do wanted = next(old);
  while (!__atomic_compare_exchange(p, &old, &wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}
template <class T>
static inline T atomicAdd(T* p, Atomic<T> v) { return atomic_update_(p, [=](T o) { return T(o + v); }); }
template <class T>
static inline T atomicSub(T* p, Atomic<T> v) { return atomic_update_(p, [=](T o) { return T(o - v); }); }
template <class T>
static inline T atomicMin(T* p, Atomic<T> v) { return atomic_update_(p, [=](T o) { return v < o ? v : o; }); }
template <class T>
static inline T atomicMax(T* p, Atomic<T> v) { return atomic_update_(p, [=](T o) { return v > o ? v : o; }); }
template <class T>
static inline T atomicOr(T* p, Atomic<T> v) { return atomic_update_(p, [=](T o) { return T(o | v); }); }
template <class T>
static inline T atomicAnd(T* p, Atomic<T> v) { return atomic_update_(p, [=](T o) { return T(o & v); }); }
template <class T>
static inline T atomicExch(T* p, Atomic<T> v) { return atomic_update_(p, [=](T) { return v; }); }
template <class T>
static inline T atomicCAS(T* p, Atomic<T> c, Atomic<T> v) {
  return atomic_update_(p, [=](T o) { return o == c ? v : o; });
}

// ---- bits and arithmetic ----
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
static inline int __float_as_int(float x) { return cudashim::bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return cudashim::bits<unsigned>(x); }
static inline float __int_as_float(int x) { return cudashim::bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return cudashim::bits<float>(x); }
static inline long long __double_as_longlong(double x) { return cudashim::bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return cudashim::bits<double>(x); }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline int __double2int_rn(double x) { return (int)rint(x); }
static inline int __double2int_rd(double x) { return (int)floor(x); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return sqrt(a); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float sinpif(float x) { return (float)sin(M_PI * (double)x); }
static inline float cospif(float x) { return (float)cos(M_PI * (double)x); }
static inline double sinpi(double x) { return sin(M_PI * x); }
static inline double cospi(double x) { return cos(M_PI * x); }
template <class T>
static inline T __ldg(const T* p) { return *p; }
// Mixed arguments promote as in CUDA; both of one type keep it. Integers compare as such, floats with fmin and fmax.
template <class A, class B>
static inline std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return std::fmin((C)a, (C)b);
  return (C)b < (C)a ? (C)b : (C)a;
}
template <class A, class B>
static inline std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return std::fmax((C)a, (C)b);
  return (C)a < (C)b ? (C)b : (C)a;
}
