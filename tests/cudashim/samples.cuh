// A helper with shuffles, to test includes and that barriers are seen through calls.
__device__ inline double warp_sum(double v) {
  for (int d = 16; d; d >>= 1) v += __shfl_down_sync(0xffffffffu, v, d);
  return v;
}
