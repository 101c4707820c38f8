// Bridges gaps of masked pixels, one pixel a thread. Twin of kernels/interpolation.py::bridge_gaps.

#define GOOD 0
#define GAP 1
#define OUTSIDE 2

struct Bridge {
    double weight, value, spread;
};

// Distance to a good pixel, 0 if the walk ends outside, -1 if it is too far.
static __device__ int reach_out(const unsigned char* state, int row, int column, int step_y, int step_x, int ny, int nx,
                                int reach)
{
    for (int distance = 1; distance <= reach; ++distance) {
        const int y = row + distance * step_y, x = column + distance * step_x;
        if (y < 0 || y >= ny || x < 0 || x >= nx) return 0;
        const unsigned char kind = state[(long long)y * nx + x];
        if (kind == OUTSIDE) return 0;
        if (kind == GOOD) return distance;
    }
    return -1;
}

static __device__ Bridge bridge(const float* image, const float* variance, const unsigned char* state, int row,
                                int column, int step_y, int step_x, int ny, int nx, int reach)
{
    const int before = reach_out(state, row, column, -step_y, -step_x, ny, nx, reach);
    const int after = reach_out(state, row, column, step_y, step_x, ny, nx, reach);
    if (before < 0 || after < 0 || before + after == 0) return {0.0, 0.0, 0.0};
    const long long low = (long long)(row - before * step_y) * nx + column - before * step_x;
    const long long high = (long long)(row + after * step_y) * nx + column + after * step_x;
    if (before == 0) {
        const double length = 2.0 * after;
        return {1.0 / (length * length), image[high], variance[high]};
    }
    if (after == 0) {
        const double length = 2.0 * before;
        return {1.0 / (length * length), image[low], variance[low]};
    }
    const double length = before + after, part = before / length;
    return {1.0 / (length * length), (1.0 - part) * (double)image[low] + part * (double)image[high],
            (1.0 - part) * (double)variance[low] + part * (double)variance[high]};
}

extern "C" __global__ void bridge_gaps(
    const float* __restrict__ image, const float* __restrict__ variance, const unsigned char* __restrict__ state,
    float* __restrict__ out_image, float* __restrict__ out_variance, unsigned char* __restrict__ filled,
    int ny, int nx, int reach)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= ny || column >= nx) return;
    const long long at = (long long)row * nx + column;
    if (state[at] != GAP) return;
    const Bridge along = bridge(image, variance, state, row, column, 0, 1, ny, nx, reach);
    const Bridge across = bridge(image, variance, state, row, column, 1, 0, ny, nx, reach);
    const double weight = along.weight + across.weight;
    if (weight == 0.0) return;
    const double value = (along.weight * along.value + across.weight * across.value) / weight;
    const double off_x = along.value - value, off_y = across.value - value;
    const double spread =
        along.weight * (along.spread + off_x * off_x) + across.weight * (across.spread + off_y * off_y);
    out_image[at] = (float)value;
    out_variance[at] = (float)(spread / weight);
    filled[at] = 1;
}
