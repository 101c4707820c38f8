// Twin of kernels/stamps.py. One block copies one stamp, its threads take neighbouring pixels.
extern "C" __global__ void copy_stamps(
    const float* __restrict__ image, const int* __restrict__ mask, const float* __restrict__ variance,
    const int* __restrict__ x0, const int* __restrict__ y0, const int* __restrict__ size,
    const long long* __restrict__ start, float scale, int no_data, int ny, int nx, int n, float* stamp_image,
    int* stamp_mask, float* stamp_variance)
{
    const int k = blockIdx.x;
    if (k >= n) return;
    const int side = size[k];
    const float nan = __int_as_float(0x7fc00000);
    for (long long t = threadIdx.x; t < (long long)side * side; t += blockDim.x) {
        const int yy = y0[k] + (int)(t / side), xx = x0[k] + (int)(t % side);
        const long long to = start[k] + t;
        if (yy < 0 || yy >= ny || xx < 0 || xx >= nx) {
            stamp_image[to] = nan;
            stamp_mask[to] = no_data;
            stamp_variance[to] = nan;
            continue;
        }
        const long long pixel = (long long)yy * nx + xx;
        stamp_image[to] = image[pixel] * scale;
        stamp_mask[to] = mask[pixel];
        stamp_variance[to] = variance[pixel] * (scale * scale);
    }
}
