// Clipped mean of aligned frames, one pixel a thread. Twin of kernels/combine.py::clipped_mean.

#define NO_DATA 256

__device__ __forceinline__ bool is_usable(const float* images, const int* masks, const float* variances, int planes,
                                          long long at)
{
    return (masks[at] & planes) == 0 && isfinite(images[at]) && isfinite(variances[at]);
}

extern "C" __global__ void clipped_mean(
    const float* __restrict__ images, const int* __restrict__ masks, const float* __restrict__ variances,
    const double* __restrict__ scales, const double* __restrict__ weights, int planes, double clip_sigma,
    double tolerance, int iterations, float* __restrict__ image, int* __restrict__ mask,
    float* __restrict__ variance, int* __restrict__ n_used, int n, int size)
{
    const int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= size) return;
    int count = 0, every = 0;
    for (int k = 0; k < n; ++k) {
        const long long at = (long long)k * size + p;
        every |= masks[at];
        if (is_usable(images, masks, variances, planes, at)) ++count;
    }
    double centre = 0.0, centre_variance = 0.0;
    for (int k = 0; k < n; ++k) {
        const long long at = (long long)k * size + p;
        if (!is_usable(images, masks, variances, planes, at)) continue;
        const double value = images[at] * scales[k];
        int rank = 0;
        for (int m = 0; m < n; ++m) {
            const long long there = (long long)m * size + p;
            if (!is_usable(images, masks, variances, planes, there)) continue;
            const double other = images[there] * scales[m];
            if (other < value || (other == value && m < k)) ++rank;
        }
        if (rank == (count - 1) / 2) {
            centre = value;
            centre_variance = variances[at] * (scales[k] * scales[k]) / (count > 1 ? count - 1 : 1);
        }
    }
    int used = 0, kept_planes = 0;
    double mean_variance = 0.0;
    for (int pass = 0; pass < iterations; ++pass) {
        double total = 0.0, total_weight = 0.0, total_variance = 0.0;
        used = kept_planes = 0;
        for (int k = 0; k < n; ++k) {
            const long long at = (long long)k * size + p;
            if (!is_usable(images, masks, variances, planes, at)) continue;
            const double value = images[at] * scales[k];
            const double noise = variances[at] * (scales[k] * scales[k]);
            const double limit = clip_sigma * sqrt(noise + centre_variance) + tolerance * fabs(centre);
            if (!(fabs(value - centre) <= limit)) continue;
            ++used;
            kept_planes |= masks[at];
            total += weights[k] * value;
            total_weight += weights[k];
            total_variance += weights[k] * weights[k] * noise;
        }
        if (used == 0) break;
        centre = total / total_weight;
        centre_variance = 0.0;
        mean_variance = total_variance / (total_weight * total_weight);
    }
    n_used[p] = used;
    image[p] = used > 0 ? (float)centre : nanf("");
    mask[p] = used > 0 ? kept_planes : every | NO_DATA;
    variance[p] = used > 0 ? (float)mean_variance : nanf("");
}
