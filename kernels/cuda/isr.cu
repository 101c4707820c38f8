// Raw counts to electrons in one pass, one pixel of one amplifier a thread. Twin of kernels/isr.py::assemble_electrons.

#define BAD 1
#define SAT 2
#define SUSPECT 128
#define NO_DATA 256

extern "C" __global__ void assemble_electrons(
    const float* __restrict__ raw, const float* __restrict__ row_levels, const float* __restrict__ column_levels,
    const int* __restrict__ boxes, const float* __restrict__ gain, const float* __restrict__ noise_variance,
    const float* __restrict__ saturation_adu, const float* __restrict__ suspect_adu, const int* __restrict__ planes,
    const float* __restrict__ bias, const float* __restrict__ bias_variance, const float* __restrict__ dark,
    const float* __restrict__ dark_variance, const float* __restrict__ flat, const float* __restrict__ flat_variance,
    const int* __restrict__ defects, float dark_time, int has_light, int has_bias, int has_dark, int has_flat,
    int has_defects, float* __restrict__ image, int* __restrict__ mask, float* __restrict__ variance,
    int n_amp, int ny_raw, int nx_raw, int ny, int nx, int rows, int columns)
{
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    const int i = blockIdx.y * blockDim.y + threadIdx.y;
    const int amp = blockIdx.z * blockDim.z + threadIdx.z;
    if (amp >= n_amp) return;
    const int* box = boxes + amp * 8;
    const int width = box[2], height = box[3];
    if (j >= width || i >= height) return;
    const int raw_x = box[0] + j, raw_y = box[1] + i;
    const int x = box[4] + (box[6] ? width - 1 - j : j), y = box[5] + (box[7] ? height - 1 - i : i);
    const long long at = (long long)y * nx + x;
    const float counts = raw[((long long)amp * ny_raw + raw_y) * nx_raw + raw_x];
    float signal = (counts - row_levels[amp * ny_raw + raw_y] - column_levels[amp * nx_raw + raw_x]) * gain[amp];
    int bits = planes[amp];
    if (counts >= saturation_adu[amp]) bits |= SAT;
    if (counts >= suspect_adu[amp]) bits |= SUSPECT;
    if (has_defects) bits |= defects[at];
    float noise = noise_variance[amp];
    if (has_bias) {
        signal = signal - bias[at];
        noise = noise + bias_variance[at];
    }
    if (has_light && signal > 0.0f) noise = noise + signal;
    if (has_dark) {
        signal = signal - dark[at] * dark_time;
        noise = noise + dark_variance[at] * (dark_time * dark_time);
    }
    if (has_flat) {
        const float response = flat[at];
        if (response > 0.0f) {
            signal = signal / response;
            noise = (noise + signal * signal * flat_variance[at]) / (response * response);
        } else {
            bits |= BAD;
        }
    }
    if (!(isfinite(signal) && isfinite(noise))) {
        signal = noise = nanf("");
        bits |= BAD | NO_DATA;
    }
    image[at] = signal;
    mask[at] = bits;
    variance[at] = noise;
}
