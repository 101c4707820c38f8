// Generalised Lomb-Scargle periodograms, one object a block, its frequencies shared by the threads. Twins of kernels/periodogram.py.

#define THREADS 128
#define MAX_BANDS 8
#define SINGULAR 1e-4f
#define TWO_PI 6.283185307179586

extern "C" __global__ void center_bands(
    const double* __restrict__ flux, const double* __restrict__ err, const long long* __restrict__ start,
    double* __restrict__ weight, double* __restrict__ residual, double* __restrict__ chi2, double* __restrict__ scatter,
    long long n_segments, int min_points)
{
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= n_segments) return;
    const long long begin = start[k], end = start[k + 1];
    double total = 0.0, moved = 0.0, summed = 0.0;
    for (long long row = begin; row < end; ++row) {
        const double w = 1.0 / (err[row] * err[row]);
        total += w;
        moved += w * (flux[row] - flux[begin]);
    }
    for (long long row = begin; row < end; ++row) {
        const double w = 1.0 / (err[row] * err[row]);
        residual[row] = flux[row] - flux[begin] - moved / total;
        weight[row] = w / total;
        summed += w * residual[row] * residual[row];
    }
    chi2[k] = end - begin >= min_points ? summed : 0.0;
    scatter[k] = sqrt(summed / total);
    for (long long row = begin; row < end; ++row) residual[row] /= scatter[k];
}

struct Curve {
    const double *time, *residual, *weight;
    const long long* start;
    const double* chi2;
};

template <class T>
struct Sums {
    T c, s, yc, ys, cc, cs;
};

// Share of the mean square that a sinusoid takes; its two coefficients where wanted.
template <class T>
__device__ static T gain(const Sums<T>& sum, T* along, T* across)
{
    const T a = sum.cc - sum.c * sum.c, b = (T)1 - sum.cc - sum.s * sum.s, d = sum.cs - sum.c * sum.s;
    const T determinant = a * b - d * d;
    if (!(determinant > (T)SINGULAR)) return (T)0;
    if (along) {
        *along = (b * sum.yc - d * sum.ys) / determinant;
        *across = (a * sum.ys - d * sum.yc) / determinant;
    }
    return (b * sum.yc * sum.yc + a * sum.ys * sum.ys - (d + d) * sum.yc * sum.ys) / determinant;
}

__device__ static double turn(double frequency, double time)
{
    const double cycles = frequency * time;
    return cycles - floor(cycles);
}

__device__ static Sums<double> band_sums(const Curve& of, long long band, double frequency)
{
    Sums<double> sum = {0, 0, 0, 0, 0, 0};
    for (long long row = of.start[band]; row < of.start[band + 1]; ++row) {
        const double angle = TWO_PI * turn(frequency, of.time[row]);
        const double c = cos(angle), s = sin(angle), w = of.weight[row], wy = w * of.residual[row];
        sum.c += w * c;
        sum.s += w * s;
        sum.yc += wy * c;
        sum.ys += wy * s;
        sum.cc += w * c * c;
        sum.cs += w * c * s;
    }
    return sum;
}

__device__ static float rough_power(const Curve& of, long long band, double frequency)
{
    Sums<float> sum = {0, 0, 0, 0, 0, 0};
    for (long long row = of.start[band]; row < of.start[band + 1]; ++row) {
        const float half_turns = (float)(2.0 * turn(frequency, of.time[row]));
        const float c = cospif(half_turns), s = sinpif(half_turns);
        const float w = (float)of.weight[row], wy = (float)(of.weight[row] * of.residual[row]);
        sum.c += w * c;
        sum.s += w * s;
        sum.yc += wy * c;
        sum.ys += wy * s;
        sum.cc += w * c * c;
        sum.cs += w * c * s;
    }
    return gain(sum, (float*)nullptr, (float*)nullptr);
}

__device__ static double power_at(const Curve& of, long long first_band, long long last_band, double frequency)
{
    double gained = 0.0, total = 0.0;
    for (long long band = first_band; band < last_band; ++band) {
        if (!(of.chi2[band] > 0.0)) continue;
        gained += gain(band_sums(of, band, frequency), (double*)nullptr, (double*)nullptr) * of.chi2[band];
        total += of.chi2[band];
    }
    return gained / total;
}

__device__ static double refined(
    const Curve& of, long long first_band, long long last_band, double frequency, double width, double* power)
{
    double best = frequency;
    *power = power_at(of, first_band, last_band, frequency);
    for (int step = 0; step < 2; ++step) {
        const double middle = best, height = *power;
        const double below = power_at(of, first_band, last_band, middle - width);
        const double above = power_at(of, first_band, last_band, middle + width);
        const double bend = below - 2.0 * height + above;
        if (bend < 0.0) {
            const double moved = middle + fmin(fmax(0.5 * (below - above) / bend, -1.0), 1.0) * width;
            const double reached = power_at(of, first_band, last_band, moved);
            if (reached > *power) {
                best = moved;
                *power = reached;
            }
        }
        width *= 0.125;
    }
    return best;
}

extern "C" __global__ void scan_frequencies(
    const double* __restrict__ time, const double* __restrict__ residual, const double* __restrict__ weight,
    const long long* __restrict__ start, const double* __restrict__ chi2, const double* __restrict__ first,
    const double* __restrict__ step, const int* __restrict__ n_steps, double* __restrict__ peaks,
    double* __restrict__ waves, int n, int n_bands)
{
    __shared__ float heights[MAX_BANDS + 1][THREADS];
    __shared__ int places[MAX_BANDS + 1][THREADS];
    const int k = blockIdx.x, me = threadIdx.x;
    const long long base = (long long)k * n_bands;
    const Curve of = {time, residual, weight, start, chi2};
    double total = 0.0;
    for (int band = 0; band < n_bands; ++band) total += chi2[base + band];
    if (k >= n || n_steps[k] < 1 || !(total > 0.0)) return;  // the same for the whole block
    for (int slot = 0; slot <= n_bands; ++slot) {
        heights[slot][me] = -1.0f;
        places[slot][me] = 0;
    }
    for (int i = me; i < n_steps[k]; i += THREADS) {
        float gained = 0.0f;
        for (int slot = 0; slot <= n_bands; ++slot) {
            if (slot < n_bands && !(chi2[base + slot] > 0.0)) continue;
            const float power = slot == n_bands ? gained : rough_power(of, base + slot, first[k] + i * step[k]);
            if (slot < n_bands) gained += power * (float)(chi2[base + slot] / total);
            if (power > heights[slot][me]) {
                heights[slot][me] = power;
                places[slot][me] = i;
            }
        }
    }
    __syncthreads();
    if (me <= n_bands && (me == n_bands || chi2[base + me] > 0.0)) {
        float highest = heights[me][0];
        int place = places[me][0];
        for (int other = 1; other < THREADS; ++other)
            if (heights[me][other] > highest || (heights[me][other] == highest && places[me][other] < place)) {
                highest = heights[me][other];
                place = places[me][other];
            }
        const long long low = me == n_bands ? base : base + me, high = me == n_bands ? base + n_bands : base + me + 1;
        double* peak = peaks + ((long long)k * (n_bands + 1) + me) * 2;
        peak[0] = refined(of, low, high, first[k] + place * step[k], step[k], peak + 1);
    }
    __syncthreads();
    if (me < n_bands && chi2[base + me] > 0.0) {
        double along = 0.0, across = 0.0;
        double* wave = waves + (base + me) * 2;
        const double frequency = peaks[((long long)k * (n_bands + 1) + n_bands) * 2];
        const Sums<double> sum = band_sums(of, base + me, frequency);
        gain(sum, &along, &across);
        if (along != 0.0 || across != 0.0) {
            const double phase = atan2(across, along) / TWO_PI;
            wave[0] = sqrt(along * along + across * across);
            wave[1] = phase - floor(phase);
        }
    }
}
