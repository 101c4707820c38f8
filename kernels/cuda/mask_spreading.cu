// Mask planes spread over the significant taps of one kernel per tile, one output pixel per thread. Twin of kernels/mask_spreading.py.

#define EDGE 16
#define NO_DATA 256

extern "C" __global__ void spread_tiles(const int* __restrict__ mask, const unsigned char* __restrict__ significant, int planes, int ny,
                                        int nx, int tiles_x, int k, int tile_pix, int* __restrict__ out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= nx || y >= ny) return;
    const unsigned char* taps = significant + (long long)((y / tile_pix) * tiles_x + x / tile_pix) * k * k;
    int half = k / 2, bits = 0;
    for (int j = 0; j < k; ++j) {
        int yy = y + half - j;
        bool row_inside = yy >= 0 && yy < ny;
        const int* row = mask + (long long)yy * nx;
        for (int i = 0; i < k; ++i) {
            int xx = x + half - i;
            if (!taps[j * k + i]) continue;
            int source = (row_inside && xx >= 0 && xx < nx) ? row[xx] : EDGE;
            bits |= (source & NO_DATA) ? source | EDGE : source;
        }
    }
    out[(long long)y * nx + x] = mask[(long long)y * nx + x] | (bits & planes);
}
