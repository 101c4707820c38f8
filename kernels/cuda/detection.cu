// Twin of kernels/detection.py. One thread per pixel; the planes are padded, so nothing is tested in the loops.
extern "C" __global__ void correlate_score(
    const float* __restrict__ signal, const float* __restrict__ variance, const float* __restrict__ kernel, int ny,
    int nx, int size, float* __restrict__ score)
{
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= nx || y >= ny) return;
    const int stride = nx + size - 1;
    float top = 0.0f, bottom = 0.0f;
    for (int j = 0; j < size; j++) {
        const long long start = (long long)(y + j) * stride + x;
        for (int i = 0; i < size; i++) {
            const float p = kernel[j * size + i];
            const float p2 = p * p;
            top += p * signal[start + i];
            bottom += p2 * variance[start + i];
        }
    }
    score[(long long)y * nx + x] = bottom > 0.0f ? top / sqrtf(bottom) : 0.0f;
}
