// Normal equations of position, proper motion and parallax, one object a thread. Twin of kernels/space_motion.py.

#define PARAMETERS 5
#define NIGHT_GAP_DAYS 0.5
#define DAYS_PER_YEAR 365.25

extern "C" __global__ void sum_motion_equations(
    const double* __restrict__ offsets, const double* __restrict__ weights, const double* __restrict__ time,
    const long long* __restrict__ start, double* __restrict__ normal, double* __restrict__ right,
    double* __restrict__ scalars, long long n_objects)
{
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= n_objects) return;
    const long long begin = start[k], end = start[k + 1];
    if (end == begin) return;
    double total = 0.0, moved = 0.0;
    long long nights = 1;
    for (long long row = begin; row < end; ++row) {
        const double w = weights[3 * row] + weights[3 * row + 1];
        total += w;
        moved += w * (time[row] - time[begin]);
        if (row > begin && time[row] - time[row - 1] > NIGHT_GAP_DAYS) ++nights;
    }
    const double epoch = time[begin] + moved / total;
    double squares = 0.0;
    double* matrix = normal + k * PARAMETERS * PARAMETERS;
    for (long long row = begin; row < end; ++row) {
        const double years = (time[row] - epoch) / DAYS_PER_YEAR;
        const double east[PARAMETERS] = {1.0, 0.0, years, 0.0, offsets[4 * row + 2]};
        const double north[PARAMETERS] = {0.0, 1.0, 0.0, years, offsets[4 * row + 3]};
        const double x = offsets[4 * row], y = offsets[4 * row + 1];
        const double w_east = weights[3 * row], w_north = weights[3 * row + 1], w_both = weights[3 * row + 2];
        const double along = w_east * x + w_both * y, across = w_both * x + w_north * y;
        squares += along * x + across * y;
        for (int i = 0; i < PARAMETERS; ++i) {
            right[k * PARAMETERS + i] += east[i] * along + north[i] * across;
            const double pull_east = east[i] * w_east + north[i] * w_both;
            const double pull_north = east[i] * w_both + north[i] * w_north;
            for (int j = i; j < PARAMETERS; ++j) matrix[i * PARAMETERS + j] += pull_east * east[j] + pull_north * north[j];
        }
    }
    for (int i = 1; i < PARAMETERS; ++i)
        for (int j = 0; j < i; ++j) matrix[i * PARAMETERS + j] = matrix[j * PARAMETERS + i];
    scalars[3 * k] = squares;
    scalars[3 * k + 1] = epoch;
    scalars[3 * k + 2] = (double)nights;
}
