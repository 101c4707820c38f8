// Twin of kernels/photometry.py. One thread per source.
static __device__ double quadrant_overlap(double a, double b, double radius)
{
    const double sign = (a < 0) == (b < 0) ? 1.0 : -1.0;
    a = fmin(fabs(a), radius);
    b = fmin(fabs(b), radius);
    if (a * a + b * b <= radius * radius) return sign * a * b;
    const double start = sqrt(radius * radius - b * b);
    const double upper = a * sqrt(radius * radius - a * a) + radius * radius * asin(a / radius);
    const double lower = start * b + radius * radius * asin(start / radius);
    return sign * (b * start + 0.5 * (upper - lower));
}

static __device__ double pixel_overlap(double dx, double dy, double radius)
{
    return quadrant_overlap(dx + 0.5, dy + 0.5, radius) - quadrant_overlap(dx - 0.5, dy + 0.5, radius)
         - quadrant_overlap(dx + 0.5, dy - 0.5, radius) + quadrant_overlap(dx - 0.5, dy - 0.5, radius);
}

extern "C" __global__ void sum_apertures(
    const float* __restrict__ image, const int* __restrict__ mask, const float* __restrict__ variance,
    const double* __restrict__ x, const double* __restrict__ y, double radius, int bad_planes, int ny, int nx, int n,
    double* flux, double* flux_variance, double* missing)
{
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= n) return;
    const int y0 = (int)floor(y[k] - radius + 0.5), y1 = (int)floor(y[k] + radius + 0.5);
    const int x0 = (int)floor(x[k] - radius + 0.5), x1 = (int)floor(x[k] + radius + 0.5);
    double total = 0.0, noise = 0.0, lost = 0.0;
    for (int yy = y0; yy <= y1; yy++) {
        for (int xx = x0; xx <= x1; xx++) {
            const double area = pixel_overlap(xx - x[k], yy - y[k], radius);
            if (yy < 0 || yy >= ny || xx < 0 || xx >= nx) { lost += area; continue; }
            const long long pixel = (long long)yy * nx + xx;
            const double d = image[pixel], v = variance[pixel];
            if ((mask[pixel] & bad_planes) != 0 || !(d - d == 0.0) || !(v - v == 0.0)) { lost += area; continue; }
            total += area * d;
            noise += area * area * v;
        }
    }
    flux[k] = total;
    flux_variance[k] = noise;
    missing[k] = lost;
}
