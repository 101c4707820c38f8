// Small kernels that test the shim itself: right ones, and wrong ones that it has to expose.
#include "samples.cuh"

extern "C" __global__ void mirror(const float* a, float* out) {
  __shared__ float s[64];
  int t = threadIdx.x;
  s[t] = a[blockIdx.x * 64 + t];
  __syncthreads();
  out[blockIdx.x * 64 + t] = s[63 - t];
}

// `mirror` with its barrier forgotten.
extern "C" __global__ void racy_mirror(const float* a, float* out) {
  __shared__ float s[64];
  int t = threadIdx.x;
  s[t] = a[blockIdx.x * 64 + t];
  out[blockIdx.x * 64 + t] = s[63 - t];
  __syncthreads();
}

extern "C" __global__ void copy(const float* a, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i];
}

/* A block's sum, (n elements), in a fixed order: warps by shuffle through a helper in the .cuh,
   then the warps' sums through dynamic shared memory. */
extern "C" __global__ void __launch_bounds__(128)
    block_sum(const float* __restrict__ a,  // (n,), with a comment
              double* __restrict__ sums,    /* one a block, (n_blocks,) */
              int n) {
  extern __shared__ double of_warp[];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  double v = warp_sum(i < n ? (double)a[i] : 0.0);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = warp_sum(threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0.0);
    if (threadIdx.x == 0) sums[blockIdx.x] = v;
  }
}

extern "C" __global__ void add_scalars(double* out, int i, unsigned u, long long l, float f, double d, unsigned char c) {
  out[0] = (double)i + (double)u + (double)l + (double)f + d + (double)c;
}

// Contracted to a fused multiply-add this gives another bit pattern for many inputs.
extern "C" __global__ void multiply_add(const float* a, const float* b, const float* c, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] * b[i] + c[i];
}
