// Laplacian edge detection of cosmic rays, one pixel a thread. Twins of kernels/cosmic_rays.py, in the same order of
// arithmetic. `work` and `noise` (variance) carry a border of one pixel: NaN and infinity. Few pixels reach the medians.

#define BLANK __int_as_float(0x7fc00000)

static __device__ int insert(float* window, int count, float value)
{
    int place = count;
    while (place > 0 && window[place - 1] > value) {
        window[place] = window[place - 1];
        --place;
    }
    window[place] = value;
    return count + 1;
}

static __device__ float middle(const float* window, int count)
{
    if (count % 2 == 1) return window[count / 2];
    return 0.5f * (window[count / 2 - 1] + window[count / 2]);
}

static __device__ bool beside(const unsigned char* flags, int row, int column, int ny, int nx)
{
    for (int y = max(row - 1, 0); y < min(row + 2, ny); ++y)
        for (int x = max(column - 1, 0); x < min(column + 2, nx); ++x)
            if (flags[(long long)y * nx + x] != 0) return true;
    return false;
}

static __device__ float least_variance(const float* noise, int row, int column, int nx)
{
    const long long width = nx + 2, at = (row + 1) * width + column + 1;
    float least = noise[at];
    least = noise[at - width] < least ? noise[at - width] : least;
    least = noise[at + width] < least ? noise[at + width] : least;
    least = noise[at - 1] < least ? noise[at - 1] : least;
    return noise[at + 1] < least ? noise[at + 1] : least;
}

static __device__ float median_3x3(const float* work, int row, int column, int ny, int nx)
{
    float small[9];
    int count = 0;
    for (int y = max(row - 1, 0); y < min(row + 2, ny); ++y)
        for (int x = max(column - 1, 0); x < min(column + 2, nx); ++x) {
            const float value = work[(long long)(y + 1) * (nx + 2) + x + 1];
            if (value == value) count = insert(small, count, value);
        }
    return count > 0 ? middle(small, count) : BLANK;
}

static __device__ float structure(const float* work, int row, int column, int ny, int nx, float* window)
{
    int count = 0;
    for (int y = max(row - 3, 0); y < min(row + 4, ny); ++y)
        for (int x = max(column - 3, 0); x < min(column + 4, nx); ++x) {
            const float value = median_3x3(work, y, x, ny, nx);
            if (value == value) count = insert(window, count, value);
        }
    const float excess = median_3x3(work, row, column, ny, nx) - middle(window, count);
    const float spread = 0.25f * (window[(3 * count) / 4] - window[count / 4]);
    return excess > spread ? excess : spread;
}

extern "C" __global__ void laplacian_snr(const float* __restrict__ work, const float* __restrict__ noise,
                                         float* __restrict__ snr, int ny, int nx)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= ny || column >= nx) return;
    const long long width = nx + 2, at = (row + 1) * width + column + 1;
    const float twice = 2.0f * work[at];
    const float up = work[at - width], down = work[at + width], left = work[at - 1], right = work[at + 1];
    float total = 0.0f, corner = twice - up - left;
    total += corner > 0.0f ? corner : 0.0f;
    corner = twice - up - right;
    total += corner > 0.0f ? corner : 0.0f;
    corner = twice - down - left;
    total += corner > 0.0f ? corner : 0.0f;
    corner = twice - down - right;
    total += corner > 0.0f ? corner : 0.0f;
    const float least = least_variance(noise, row, column, nx);
    snr[(long long)row * nx + column] = least > 0.0f ? total / (8.0f * sqrtf(least)) : 0.0f;
}

extern "C" __global__ void flag_edges(const float* __restrict__ work, const float* __restrict__ noise,
                                      const float* __restrict__ snr, const unsigned char* __restrict__ barred,
                                      const unsigned char* __restrict__ before, unsigned char* __restrict__ found,
                                      int ny, int nx, float threshold, float contrast, int needs_neighbour)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= ny || column >= nx) return;
    const long long at = (long long)row * nx + column;
    if (snr[at] <= threshold || barred[at] != 0 || before[at] != 0) return;
    if (needs_neighbour != 0 && !beside(before, row, column, ny, nx)) return;
    float window[49];
    int count = 0;
    for (int y = max(row - 2, 0); y < min(row + 3, ny); ++y)
        for (int x = max(column - 2, 0); x < min(column + 3, nx); ++x)
            count = insert(window, count, snr[(long long)y * nx + x]);
    if (snr[at] - middle(window, count) <= threshold) return;
    const float edge = snr[at] * sqrtf(least_variance(noise, row, column, nx));
    if (edge > contrast * structure(work, row, column, ny, nx, window)) found[at] = 1;
}

// Reads unflagged pixels of `work` only and writes flagged ones only: no thread sees another's result.
extern "C" __global__ void replace_flagged(float* __restrict__ work, const unsigned char* __restrict__ rays, int ny, int nx)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= ny || column >= nx || rays[(long long)row * nx + column] == 0) return;
    float window[25];
    int count = 0;
    for (int y = max(row - 2, 0); y < min(row + 3, ny); ++y)
        for (int x = max(column - 2, 0); x < min(column + 3, nx); ++x) {
            if (rays[(long long)y * nx + x] != 0) continue;
            const float value = work[(long long)(y + 1) * (nx + 2) + x + 1];
            if (value == value) count = insert(window, count, value);
        }
    if (count > 0) work[(long long)(row + 1) * (nx + 2) + column + 1] = middle(window, count);
}
