// Twin of kernels/forced.py. One block measures one position; a row of a stamp is summed by one thread, the rows by another.
#define RIDGE 1e-10
#define VARIANCE_FLOOR 0.05

static __device__ void variance_levels(
    double n, double p, double pp, double v, double pv, double area, double* levels)
{
    levels[0] = levels[1] = 0.0;
    levels[2] = VARIANCE_FLOOR * 1e-30;
    if (!(pp > 0.0)) return;
    const double scale_p = 1.0 / sqrt(pp), scale_1 = 1.0 / sqrt(n);
    const double side = 1.0 + RIDGE, cross = p * scale_p * scale_1;
    const double det = side * side - cross * cross;
    const double of_p = pv * scale_p, of_1 = v * scale_1;
    const double a = fmax((side * of_p - cross * of_1) / det * scale_p, 0.0);
    const double b = fmax((side * of_1 - cross * of_p) / det * scale_1, 0.0);
    levels[0] = a;
    levels[1] = b;
    levels[2] = VARIANCE_FLOOR * fmax(a / area + b, 1e-30);
}

// Sum each of `width` numbers a row over the rows, in their order.
static __device__ double sum_rows(const double* of_row, int i, int width, int size)
{
    double sum = 0.0;
    for (int y = 0; y < size; y++) sum += of_row[y * width + i];
    return sum;
}

extern "C" __global__ void forced_sums(
    const float* __restrict__ image, const int* __restrict__ mask, const float* __restrict__ variance,
    const int* __restrict__ column, const int* __restrict__ row, const double* __restrict__ terms,
    const double* __restrict__ coefficients, const double* __restrict__ taps_x, const double* __restrict__ taps_y,
    int bad_planes, int ny, int nx, int n, int n_terms, int size, int reach, double* sums, int* n_pixels)
{
    extern __shared__ double memory[];
    const int k = blockIdx.x, area = size * size, half = size / 2, width = 2 * reach + 1;
    double* psf = memory;
    double* moved = psf + area;  // later: the sum of P^2 of each row
    double* of_row = moved + area;  // 5 sums a row
    double* levels = of_row + 5 * size;  // 3
    for (int i = threadIdx.x; i < area; i += blockDim.x) {
        double value = 0.0;
        for (int t = 0; t < n_terms; t++)
            value += terms[(long long)k * n_terms + t] * coefficients[(long long)t * area + i];
        psf[i] = value;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < area; i += blockDim.x) {
        const int y = i / size, x = i % size;
        double value = 0.0;
        for (int j = max(0, y - reach); j < min(size, y + reach + 1); j++)
            value += taps_y[(long long)k * width + y - j + reach] * psf[j * size + x];
        moved[i] = value;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < area; i += blockDim.x) {
        const int y = i / size, x = i % size;
        double value = 0.0;
        for (int j = max(0, x - reach); j < min(size, x + reach + 1); j++)
            value += taps_x[(long long)k * width + x - j + reach] * moved[y * size + j];
        psf[i] = value;
    }
    __syncthreads();
    for (int y = threadIdx.x; y < size; y += blockDim.x) {
        of_row[y] = 0.0;
        for (int x = 0; x < size; x++) of_row[y] += psf[y * size + x];
    }
    __syncthreads();
    const double total = sum_rows(of_row, 0, 1, size);
    for (int i = threadIdx.x; i < area; i += blockDim.x) psf[i] = (double)(float)(psf[i] / total);
    __syncthreads();

    const int first_y = max(0, half - row[k]), last_y = min(size, ny + half - row[k]);
    const int first_x = max(0, half - column[k]), last_x = min(size, nx + half - column[k]);
    double whole = 0.0;
    for (int y = threadIdx.x; y < size; y += blockDim.x) {
        double of_psf = 0.0, count = 0.0, sum_p = 0.0, sum_pp = 0.0, sum_v = 0.0, sum_pv = 0.0;
        for (int x = 0; x < size; x++) of_psf += psf[y * size + x] * psf[y * size + x];
        if (y >= first_y && y < last_y) {
            for (int x = first_x; x < last_x; x++) {
                const long long pixel = (long long)(row[k] + y - half) * nx + (column[k] + x - half);
                const double p = psf[y * size + x], v = variance[pixel];
                if ((mask[pixel] & bad_planes) != 0 || !(v > 0.0) || !(v - v == 0.0)) continue;
                count += 1.0;
                sum_p += p;
                sum_pp += p * p;
                sum_v += v;
                sum_pv += p * v;
            }
        }
        moved[y] = of_psf;
        of_row[y * 5] = count;
        of_row[y * 5 + 1] = sum_p;
        of_row[y * 5 + 2] = sum_pp;
        of_row[y * 5 + 3] = sum_v;
        of_row[y * 5 + 4] = sum_pv;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double known[5];
        for (int i = 0; i < 5; i++) known[i] = sum_rows(of_row, i, 5, size);
        whole = sum_rows(moved, 0, 1, size);
        variance_levels(known[0], known[1], known[2], known[3], known[4], area, levels);
        sums[(long long)k * 6 + 4] = known[2];
        sums[(long long)k * 6 + 5] = whole;
    }
    __syncthreads();
    for (int y = threadIdx.x; y < size; y += blockDim.x) {
        double normal = 0.0, noise = 0.0, projection = 0.0, squares = 0.0, count = 0.0;
        if (y >= first_y && y < last_y) {
            for (int x = first_x; x < last_x; x++) {
                const long long pixel = (long long)(row[k] + y - half) * nx + (column[k] + x - half);
                const double p = psf[y * size + x], d = image[pixel], v = variance[pixel];
                if ((mask[pixel] & bad_planes) != 0 || !(d - d == 0.0) || !(v > 0.0) || !(v - v == 0.0)) continue;
                const double w = (double)(float)(1.0 / fmax(levels[0] * p + levels[1], levels[2]));
                const double wp = w * p;
                normal += wp * p;
                noise += wp * p * (w * v);
                projection += wp * d;
                squares += w * d * d;
                count += 1.0;
            }
        }
        of_row[y * 5] = normal;
        of_row[y * 5 + 1] = noise;
        of_row[y * 5 + 2] = projection;
        of_row[y * 5 + 3] = squares;
        of_row[y * 5 + 4] = count;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 5; i += blockDim.x) {
        const double sum = sum_rows(of_row, i, 5, size);
        if (i < 4) sums[(long long)k * 6 + i] = sum;
        else n_pixels[k] = (int)sum;
    }
}
