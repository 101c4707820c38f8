// Statistics of light curves, one segment a thread. Twins of kernels/light_curve.py, same order of operations.

#define STETSON_STEPS 20
#define STETSON_TOLERANCE 1e-6

__device__ static double weighted_mean(
    const double* value, const double* err, long long begin, long long end, double* weight)
{
    double total = 0.0, moved = 0.0;
    for (long long row = begin; row < end; ++row) {
        const double w = 1.0 / (err[row] * err[row]);
        total += w;
        moved += w * (value[row] - value[begin]);
    }
    *weight = total;
    return value[begin] + moved / total;
}

__device__ static double plain_moments(const double* value, long long begin, long long end, double* third)
{
    double moved = 0.0, second = 0.0, cube = 0.0;
    for (long long row = begin; row < end; ++row) moved += value[row] - value[begin];
    const double mean = moved / (double)(end - begin);
    for (long long row = begin; row < end; ++row) {
        const double d = value[row] - value[begin] - mean;
        second += d * d;
        cube += d * d * d;
    }
    *third = cube;
    return second;
}

__device__ static double quantile_of(const double* ranked, long long begin, long long end, double q)
{
    const double place = (double)(end - begin - 1) * q;
    const long long low = (long long)floor(place);
    const double share = place - (double)low;
    const double a = ranked[begin + low], b = ranked[min(begin + low + 1, end - 1)];
    return share >= 0.5 ? b - (b - a) * (1.0 - share) : a + (b - a) * share;
}

__device__ static double median_distance(const double* ranked, long long begin, long long end, double middle)
{
    const long long n = end - begin;
    long long right = begin;
    while (right < end && ranked[right] < middle) ++right;
    long long left = right - 1;
    double before = 0.0, now = 0.0;
    for (long long step = 0; step <= n / 2; ++step) {
        before = now;
        if (left < begin || (right < end && ranked[right] - middle < middle - ranked[left]))
            now = ranked[right++] - middle;
        else
            now = middle - ranked[left--];
    }
    return n % 2 == 1 ? now : 0.5 * (before + now);
}

__device__ static double stetson_j(
    const double* flux, const double* err, long long begin, long long end, double mean, double weight)
{
    const double n = (double)(end - begin);
    const double bias = sqrt(n / (n - 1.0));
    for (int step = 0; step < STETSON_STEPS; ++step) {
        double total = 0.0, moved = 0.0;
        for (long long row = begin; row < end; ++row) {
            const double half = 0.5 * bias * (flux[row] - mean) / err[row];
            const double w = 1.0 / (err[row] * err[row]) / (1.0 + half * half);
            total += w;
            moved += w * (flux[row] - mean);
        }
        mean += moved / total;
        if (fabs(moved / total) <= STETSON_TOLERANCE / sqrt(weight)) break;
    }
    double summed = 0.0;
    for (long long row = begin; row < end; ++row) {
        const double d = bias * (flux[row] - mean) / err[row];
        const double product = d * d - 1.0;
        summed += product > 0.0 ? sqrt(product) : -sqrt(-product);
    }
    return summed / n;
}

extern "C" __global__ void average_segments(
    const double* __restrict__ value, const double* __restrict__ err, const long long* __restrict__ start,
    double* __restrict__ out, long long n_segments)
{
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= n_segments) return;
    const long long begin = start[k], end = start[k + 1];
    if (end == begin) return;
    double weight, third;
    out[k] = weighted_mean(value, err, begin, end, &weight);
    out[n_segments + k] = 1.0 / sqrt(weight);
    if (end > begin + 1)
        out[2 * n_segments + k] = sqrt(plain_moments(value, begin, end, &third) / (double)(end - begin - 1));
}

extern "C" __global__ void describe_segments(
    const double* __restrict__ flux, const double* __restrict__ err, const double* __restrict__ time,
    const double* __restrict__ ranked, const long long* __restrict__ start, const double* __restrict__ origin,
    double* __restrict__ out, long long n_segments)
{
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= n_segments) return;
    const long long begin = start[k], end = start[k + 1];
    if (end == begin) return;
    double* column = out + k;
    const long long m = n_segments;
    const double n = (double)(end - begin);
    double weight, unused;
    const double mean = weighted_mean(flux, err, begin, end, &weight);
    const double mean_time = weighted_mean(time, err, begin, end, &unused);
    double chi2 = 0.0, errors = 0.0, lever = 0.0, cross = 0.0, steepest = 0.0;
    bool is_moving = false;
    for (long long row = begin; row < end; ++row) {
        const double w = 1.0 / (err[row] * err[row]);
        const double d = flux[row] - mean;
        const double since = time[row] - mean_time;
        chi2 += w * d * d;
        lever += w * since * since;
        cross += w * since * d;
        errors += err[row];
        if (row > begin && time[row] > time[row - 1]) {
            const double slope = (flux[row] - flux[row - 1]) / (time[row] - time[row - 1]);
            steepest = is_moving ? fmax(steepest, slope) : slope;
            is_moving = true;
        }
    }
    column[0] = mean;
    column[m] = 1.0 / sqrt(weight);
    column[3 * m] = ranked[begin];
    column[4 * m] = ranked[end - 1];
    column[5 * m] = errors / n;
    column[7 * m] = chi2;
    const double middle = quantile_of(ranked, begin, end, 0.5);
    column[8 * m] = median_distance(ranked, begin, end, middle);
    column[10 * m] = quantile_of(ranked, begin, end, 0.05);
    column[11 * m] = quantile_of(ranked, begin, end, 0.25);
    column[12 * m] = middle;
    column[13 * m] = quantile_of(ranked, begin, end, 0.75);
    column[14 * m] = quantile_of(ranked, begin, end, 0.95);
    if (end == begin + 1) return;
    double third;
    const double second = plain_moments(flux, begin, end, &third);
    column[2 * m] = sqrt(second / (n - 1.0));
    if (second > 0.0) column[9 * m] = third / n / (second / n * sqrt(second / n));
    column[15 * m] = stetson_j(flux, err, begin, end, mean, weight);
    if (!is_moving) return;
    column[6 * m] = steepest;
    column[16 * m] = cross / lever;
    column[17 * m] = mean + cross / lever * (origin[k] - mean_time);
}
