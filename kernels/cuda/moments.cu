// Adaptive Gaussian-weighted moments, one source a thread. Twin of kernels/moments.py::adaptive_moments.

#define MAX_HALF_SIZE 32

extern "C" __global__ void adaptive_moments(
    const float* __restrict__ image, const unsigned char* __restrict__ bad, const float* __restrict__ variance,
    const double* __restrict__ x, const double* __restrict__ y, double* __restrict__ out,
    int ny, int nx, int n, int half, double sigma_start, int iterations)
{
    const int source = blockIdx.x * blockDim.x + threadIdx.x;
    if (source >= n) return;
    double along[2 * MAX_HALF_SIZE + 1];
    double x_now = x[source], y_now = y[source], sigma = sigma_start;
    double total = 0, xx = 0, yy = 0, xy = 0, noise = 0, weight_all = 0, weight_bad = 0;
    for (int step = 0; step < iterations; ++step) {
        double sum_x = 0, sum_y = 0, sum_xx = 0, sum_yy = 0, sum_xy = 0;
        total = noise = weight_all = weight_bad = 0;
        const int x_mid = (int)floor(x_now + 0.5), y_mid = (int)floor(y_now + 0.5);
        for (int k = 0; k <= 2 * half; ++k) {
            const double dx = x_mid - half + k - x_now;
            along[k] = exp(-0.5 * dx * dx / (sigma * sigma));
        }
        for (int row = y_mid - half; row <= y_mid + half; ++row) {
            const double dy = row - y_now, across = exp(-0.5 * dy * dy / (sigma * sigma));
            for (int column = x_mid - half; column <= x_mid + half; ++column) {
                const double dx = column - x_now, weight = across * along[column - x_mid + half];
                weight_all += weight;
                const long long at = (long long)row * nx + column;
                if (row < 0 || row >= ny || column < 0 || column >= nx || bad[at] != 0) {
                    weight_bad += weight;
                    continue;
                }
                const double light = weight * image[at];
                total += light;
                sum_x += light * dx;
                sum_y += light * dy;
                sum_xx += light * dx * dx;
                sum_yy += light * dy * dy;
                sum_xy += light * dx * dy;
                noise += weight * weight * variance[at];
            }
        }
        if (!(total > 0.0)) return;
        const double mean_x = sum_x / total, mean_y = sum_y / total;
        xx = sum_xx / total - mean_x * mean_x;
        yy = sum_yy / total - mean_y * mean_y;
        xy = sum_xy / total - mean_x * mean_y;
        const double inverse = 2.0 / (xx + yy) - 1.0 / (sigma * sigma);
        if (!(inverse > 1.0 / ((double)half * half))) return;
        x_now += fmin(fmax(2.0 * mean_x, -1.0), 1.0);
        y_now += fmin(fmax(2.0 * mean_y, -1.0), 1.0);
        sigma = fmax(1.0 / sqrt(inverse), 0.5);
        if (fabs(x_now - x[source]) > half || fabs(y_now - y[source]) > half) return;
    }
    const double trace = xx + yy;
    double* column = out + source;
    column[0 * (long long)n] = x_now;
    column[1 * (long long)n] = y_now;
    column[2 * (long long)n] = sigma;
    column[3 * (long long)n] = (xx - yy) / trace;
    column[4 * (long long)n] = 2.0 * xy / trace;
    column[5 * (long long)n] = 2.0 * total;
    column[6 * (long long)n] = 2.0 * sqrt(noise);
    column[7 * (long long)n] = weight_bad / weight_all;
}
