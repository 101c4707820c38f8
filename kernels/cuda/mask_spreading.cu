// Mask planes spread over the taps of one kernel per tile that matter, one output pixel per thread. Twin of
// kernels/mask_spreading.py.

#define SAT 2
#define EDGE 16
#define NO_DATA 256
#define SAT_TEMPLATE 4096
#define SATURATED_SHARE 32212  // 3e-5 of 2^30

extern "C" __global__ void spread_tiles(const int* __restrict__ mask, const int* __restrict__ all_taps, const int* __restrict__ least,
                                        int planes, int lost, int ny, int nx, int tiles_x, int k, int tile_pix, int* __restrict__ out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= nx || y >= ny) return;
    int tile = (y / tile_pix) * tiles_x + x / tile_pix;
    const int* taps = all_taps + (long long)tile * k * k;
    int half = k / 2, bits = 0, saturated = 0, saturated_template = 0;
    for (int j = 0; j < k; ++j) {
        int yy = y + half - j;
        bool row_inside = yy >= 0 && yy < ny;
        const int* row = mask + (long long)yy * nx;
        for (int i = 0; i < k; ++i) {
            int xx = x + half - i, tap = taps[j * k + i];
            int source = (row_inside && xx >= 0 && xx < nx) ? row[xx] : EDGE;
            source = ((source & NO_DATA) ? source | EDGE : source) & planes;
            if (tap >= least[tile]) bits |= source;
            if (source & lost & SAT) saturated += tap;
            if (source & lost & SAT_TEMPLATE) saturated_template += tap;
        }
    }
    if (saturated > SATURATED_SHARE) bits |= SAT;
    if (saturated_template > SATURATED_SHARE) bits |= SAT_TEMPLATE;
    out[(long long)y * nx + x] = mask[(long long)y * nx + x] | bits;
}
