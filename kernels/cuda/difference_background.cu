// Sums over the clipped pixels of bins, one bin a block, one column of the bin a thread.
// Twin of kernels/difference_background.py::sum_bins: sums run down columns, then across, in one fixed order.

#define MAX_WIDTH 1024
#define CLIP_VARIANCE 16.0f

extern "C" __global__ void sum_bins(
    const float* __restrict__ image, const int* __restrict__ mask, const float* __restrict__ variance,
    const float* __restrict__ middle, int planes, int ny, int nx, int rows, int columns, int bin_pix,
    double* __restrict__ count, double* __restrict__ total, double* __restrict__ noise)
{
    __shared__ double counts[MAX_WIDTH], totals[MAX_WIDTH], noises[MAX_WIDTH];
    const int y0 = blockIdx.y * bin_pix, x0 = blockIdx.x * bin_pix, column = threadIdx.x;
    const int height = min(bin_pix, ny - y0), width = min(bin_pix, nx - x0);
    const float centre = middle[blockIdx.y * columns + blockIdx.x];
    if (column < width) {
        double number = 0.0, sum = 0.0, spread_sum = 0.0;
        for (int y = y0; y < y0 + height; ++y) {
            const long long at = (long long)y * nx + x0 + column;
            const float value = image[at], spread = variance[at], rest = value - centre;
            const bool inside = (mask[at] & planes) == 0 && spread > 0.0f && rest * rest <= CLIP_VARIANCE * spread;
            number += inside ? 1.0 : 0.0;
            sum += inside ? (double)value : 0.0;
            spread_sum += inside ? (double)spread : 0.0;
        }
        counts[column] = number;
        totals[column] = sum;
        noises[column] = spread_sum;
    }
    __syncthreads();
    if (column == 0) {
        double number = 0.0, sum = 0.0, spread_sum = 0.0;
        for (int x = 0; x < width; ++x) {
            number += counts[x];
            sum += totals[x];
            spread_sum += noises[x];
        }
        const int index = blockIdx.y * columns + blockIdx.x;
        count[index] = number;
        total[index] = sum;
        noise[index] = spread_sum;
    }
}
