// Clipped statistics of mesh bins, one bin a block, one column of the bin a thread.
// Twin of kernels/background.py::clip_bins: sums run down columns, then across, in one fixed order.

#define MAX_WIDTH 1024
#define MEDIAN_STEPS 14
#define SKEWED 0.3

struct Sums {
    int number;
    double total, square;
};

// Count, sum and sum of squares of the usable pixels of the block's bin within [low, high]; the same in every thread.
static __device__ Sums bin_sums(const float* image, const int* mask, int planes, int nx, int y0, int y1, int x0, int x1,
                                double low, double high, double* totals, double* squares, int* numbers)
{
    const int column = threadIdx.x, width = x1 - x0;
    double total = 0.0, square = 0.0;
    int number = 0;
    if (column < width) {
        for (int row = y0; row < y1; ++row) {
            const long long at = (long long)row * nx + x0 + column;
            const float pixel = image[at];
            const double value = pixel;
            const bool usable = (mask[at] & planes) == 0 && fabsf(pixel) < 3e38f;
            if (usable && value >= low && value <= high) {
                total += value;
                square += value * value;
                number += 1;
            }
        }
        totals[column] = total;
        squares[column] = square;
        numbers[column] = number;
    }
    __syncthreads();
    Sums sums = {0, 0.0, 0.0};
    for (int k = 0; k < width; ++k) {
        sums.total += totals[k];
        sums.square += squares[k];
        sums.number += numbers[k];
    }
    __syncthreads();
    return sums;
}

extern "C" __global__ void clip_bins(
    const float* __restrict__ image, const int* __restrict__ mask, double* __restrict__ level,
    double* __restrict__ noise, int* __restrict__ count, int ny, int nx, int n_y, int n_x, int planes,
    int iterations, double sigma_clip, double median_weight)
{
    __shared__ double totals[MAX_WIDTH], squares[MAX_WIDTH];
    __shared__ int numbers[MAX_WIDTH];
    const int bin_y = blockIdx.y, bin_x = blockIdx.x;
    const int y0 = (int)((long long)bin_y * ny / n_y), y1 = (int)((long long)(bin_y + 1) * ny / n_y);
    const int x0 = (int)((long long)bin_x * nx / n_x), x1 = (int)((long long)(bin_x + 1) * nx / n_x);
    double low = -1e300, high = 1e300, mean = 0.0, sigma = 0.0;
    int kept = -1;
    for (int step = 0; step < iterations; ++step) {
        const Sums now = bin_sums(image, mask, planes, nx, y0, y1, x0, x1, low, high, totals, squares, numbers);
        if (now.number == kept || now.number == 0) break;
        kept = now.number;
        mean = now.total / now.number;
        sigma = sqrt(fmax(now.square / now.number - mean * mean, 0.0));
        low = mean - sigma_clip * sigma;
        high = mean + sigma_clip * sigma;
    }
    kept = bin_sums(image, mask, planes, nx, y0, y1, x0, x1, low, high, totals, squares, numbers).number;
    const long long out = (long long)bin_y * n_x + bin_x;
    if (threadIdx.x == 0) count[out] = kept;
    if (kept == 0) return;
    if (threadIdx.x == 0) {
        noise[out] = sigma;
        level[out] = mean;
    }
    if (median_weight == 0.0) return;
    double below = low, above = high;
    for (int step = 0; step < MEDIAN_STEPS; ++step) {
        const double middle = 0.5 * (below + above);
        const Sums now = bin_sums(image, mask, planes, nx, y0, y1, x0, x1, low, middle, totals, squares, numbers);
        if (2 * now.number < kept)
            below = middle;
        else
            above = middle;
    }
    if (threadIdx.x != 0) return;
    const double median = 0.5 * (below + above);
    const bool skewed = fabs(mean - median) >= SKEWED * sigma;
    level[out] = skewed ? median : median_weight * median + (1.0 - median_weight) * mean;
}
