// Lanczos resampling, one output pixel per thread. Twin of kernels/warp.py: same order of operations, same bits.

#define PHASES 1024
#define GAIN_PHASES 16
#define MEANINGFUL_WEIGHT 1e-3f
#define NO_DATA 256
#define MAX_TAPS 10

template <typename T>
static __device__ __forceinline__ double bilinear(const T* grid, int nx, int j, int i, double v, double u) {
    const T* row = grid + (long long)j * nx + i;
    double top = row[0] + u * (row[1] - row[0]);
    double bottom = row[nx] + u * (row[nx + 1] - row[nx]);
    return top + v * (bottom - top);
}

static __device__ __forceinline__ double area_ratio(const double* map_x, const double* map_y, int nx, int j, int i,
                                                    double v, double u, int step) {
    const double* x = map_x + (long long)j * nx + i;
    const double* y = map_y + (long long)j * nx + i;
    double xu = (x[1] - x[0]) * (1.0 - v) + (x[nx + 1] - x[nx]) * v;
    double xv = (x[nx] - x[0]) * (1.0 - u) + (x[nx + 1] - x[1]) * u;
    double yu = (y[1] - y[0]) * (1.0 - v) + (y[nx + 1] - y[nx]) * v;
    double yv = (y[nx] - y[0]) * (1.0 - u) + (y[nx + 1] - y[1]) * u;
    return fabs(xu * yv - xv * yu) / ((double)step * (double)step);
}

static __device__ __forceinline__ void weights_at(const float* table, double phase, int taps, float* weights) {
    double position = phase * PHASES;
    int row = min((int)position, PHASES - 1);
    float rest = (float)(position - row);
    const float* low = table + row * taps;
    const float* high = low + taps;
    for (int k = 0; k < taps; ++k) weights[k] = low[k] + rest * (high[k] - low[k]);
}

extern "C" __global__ void lanczos_warp(
    const float* __restrict__ image, const int* __restrict__ mask, const float* __restrict__ variance,
    const double* __restrict__ map_x, const double* __restrict__ map_y, const float* __restrict__ table,
    const float* __restrict__ gain, int step, int order, int conserve, int ny_in, int nx_in, int nx_grid, int ny, int nx,
    float* out_image, int* out_mask, float* out_variance) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= nx || y >= ny) return;
    long long out = (long long)y * nx + x;
    out_image[out] = nanf("");
    out_variance[out] = nanf("");
    out_mask[out] = NO_DATA;
    int taps = 2 * order, j = y / step, i = x / step;
    double v = (y - j * step) / (double)step, u = (x - i * step) / (double)step;
    double sx = bilinear(map_x, nx_grid, j, i, v, u), sy = bilinear(map_y, nx_grid, j, i, v, u);
    if (!(sx > -order && sx < nx_in - 1 + order && sy > -order && sy < ny_in - 1 + order)) return;
    int ix = (int)floor(sx), iy = (int)floor(sy);
    double fx = sx - ix, fy = sy - iy;
    float wx[MAX_TAPS], wy[MAX_TAPS];
    weights_at(table, fx, taps, wx);
    weights_at(table, fy, taps, wy);
    float value = 0.0f, spread = 0.0f;
    int bits = 0;
    bool missing = false;
    for (int k = 0; k < taps; ++k) {
        int yy = iy - order + 1 + k;
        for (int m = 0; m < taps; ++m) {
            int xx = ix - order + 1 + m;
            float w = wy[k] * wx[m];
            bool matters = fabsf(w) > MEANINGFUL_WEIGHT;
            if (yy < 0 || yy >= ny_in || xx < 0 || xx >= nx_in) { missing |= matters; continue; }
            long long at = (long long)yy * nx_in + xx;
            float pixel = image[at];
            int planes = mask[at];
            if (pixel != pixel || (planes & NO_DATA) != 0) { missing |= matters; continue; }
            value += w * pixel;
            spread += (w * w) * variance[at];
            if (matters) bits |= planes;
        }
    }
    if (missing) return;
    int gx = min((int)(fx * GAIN_PHASES), GAIN_PHASES - 1), gy = min((int)(fy * GAIN_PHASES), GAIN_PHASES - 1);
    float factor = (float)bilinear(gain, GAIN_PHASES + 1, gy, gx, fy * GAIN_PHASES - gy, fx * GAIN_PHASES - gx);
    float area = conserve ? (float)area_ratio(map_x, map_y, nx_grid, j, i, v, u, step) : 1.0f;
    out_image[out] = value * area;
    out_variance[out] = spread * factor * area * area;
    out_mask[out] = bits;
}
