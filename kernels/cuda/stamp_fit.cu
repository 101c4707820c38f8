// Twin of kernels/stamp_fit.py. One thread per source and pair of templates (i, j); float64 sums, pixels by rows.
extern "C" __global__ void stamp_normal_equations(
    const float* __restrict__ image, const int* __restrict__ mask, const float* __restrict__ variance,
    const int* __restrict__ column, const int* __restrict__ row, const float* __restrict__ templates,
    const float* __restrict__ weights, int bad_planes, int ny, int nx, int n, int m, int size, double* normal,
    double* noise, double* projection, double* total, int* n_pixels)
{
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= (long long)n * m * m) return;
    const int k = (int)(t / (m * m)), i = (int)(t / m % m), j = (int)(t % m);
    const int half = size / 2;
    const long long area = (long long)size * size;
    const float* ti = templates + ((long long)k * m + min(i, j)) * area;  // the same bits on both sides of the diagonal
    const float* tj = templates + ((long long)k * m + max(i, j)) * area;
    const float* weight = weights + k * area;
    const int y1 = min(size, ny + half - row[k]), x1 = min(size, nx + half - column[k]);
    double sum_normal = 0.0, sum_noise = 0.0, sum_projection = 0.0, sum_total = 0.0;
    int count = 0;
    for (int y = max(0, half - row[k]); y < y1; y++) {
        for (int x = max(0, half - column[k]); x < x1; x++) {
            const long long pixel = (long long)(row[k] + y - half) * nx + (column[k] + x - half);
            const double d = image[pixel], v = variance[pixel];
            if ((mask[pixel] & bad_planes) != 0 || !(d - d == 0.0) || !(v > 0.0) || !(v - v == 0.0)) continue;
            const double w = weight[y * size + x];
            count++;
            sum_total += w * d * d;
            const double wt = w * (double)ti[y * size + x];
            sum_projection += wt * d;
            const double term = wt * (double)tj[y * size + x];
            sum_normal += term;
            sum_noise += term * (w * v);
        }
    }
    normal[t] = sum_normal;
    noise[t] = sum_noise;
    if (j == m - 1) projection[(long long)k * m + i] = sum_projection;
    if (i == 0 && j == 0) { total[k] = sum_total; n_pixels[k] = count; }
}
