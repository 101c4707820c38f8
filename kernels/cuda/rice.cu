// Rice decoding of FITS tiles, one tile per thread. Twin of kernels/rice.py.

typedef unsigned long long word;

struct Reservoir {
    const unsigned char* code;
    long long length, position;
    word bits;  // the next `have` bits of the code, uppermost first, and zeros
    int have;

    __device__ void refill() {
        while (have <= 56) {
            if (position < length) bits |= (word)code[position] << (56 - have);
            ++position;
            have += 8;
        }
    }

    __device__ long long take(int n) {
        long long value = n ? (long long)(bits >> (64 - n)) : 0;
        bits = n == 64 ? 0 : bits << n;
        have -= n;
        return value;
    }
};

__device__ long long as_signed(long long value, int pixel_bytes) {
    if (pixel_bytes == 1) return value & 0xFF;
    if (pixel_bytes == 2) return ((value & 0xFFFF) ^ 0x8000) - 0x8000;
    return ((value & 0xFFFFFFFFLL) ^ 0x80000000LL) - 0x80000000LL;
}

template <typename Pixel>
__device__ bool decode(const unsigned char* code, long long length, int pixel_bytes, int block_pix, long long zero, Pixel* out, long long count) {
    int code_bits = pixel_bytes == 1 ? 3 : pixel_bytes == 2 ? 4 : 5;
    int plain = pixel_bytes == 1 ? 6 : pixel_bytes == 2 ? 14 : 25;  // code of a block that is not compressed
    if (length < pixel_bytes) return count == 0;
    long long value = 0, left = 8 * (length - pixel_bytes);  // left: bits of the code not yet used
    for (int i = 0; i < pixel_bytes; ++i) value = (value << 8) | code[i];
    Reservoir next = {code, length, pixel_bytes, 0, 0};
    for (long long first = 0; first < count; first += block_pix) {
        long long last = first + block_pix < count ? first + block_pix : count;
        next.refill();
        int kept = (int)next.take(code_bits) - 1;
        left -= code_bits;
        if (kept > plain) return false;
        for (long long i = first; i < last; ++i) {
            long long folded = 0;
            if (kept == plain) {
                next.refill();
                folded = next.take(8 * pixel_bytes);
                left -= 8 * pixel_bytes;
            } else if (kept >= 0) {
                long long zeros = 0;
                for (next.refill(); !(next.bits >> 56); next.refill()) {
                    next.take(8);
                    zeros += 8;
                    if (zeros > left) return false;
                }
                int some = 0;
                while (!((next.bits << some) >> 63)) ++some;
                next.take(some + 1);
                folded = ((zeros + some) << kept) | next.take(kept);
                left -= zeros + some + 1 + kept;
            }
            value += folded & 1 ? -((folded + 1) >> 1) : folded >> 1;
            out[i] = (Pixel)(as_signed(value, pixel_bytes) + zero);
        }
        if (left < 0) return false;
    }
    return true;
}

extern "C" __global__ void decode_tiles_uint16(const unsigned char* __restrict__ stored, const long long* __restrict__ start,
                                               const long long* __restrict__ length, const long long* __restrict__ place,
                                               const long long* __restrict__ count, int n, int pixel_bytes, int block_pix, long long zero,
                                               unsigned short* __restrict__ out, unsigned char* __restrict__ whole) {
    int tile = blockIdx.x * blockDim.x + threadIdx.x;
    if (tile >= n) return;
    whole[tile] = decode(stored + start[tile], length[tile], pixel_bytes, block_pix, zero, out + place[tile], count[tile]);
}

extern "C" __global__ void decode_tiles_int32(const unsigned char* __restrict__ stored, const long long* __restrict__ start,
                                              const long long* __restrict__ length, const long long* __restrict__ place,
                                              const long long* __restrict__ count, int n, int pixel_bytes, int block_pix, long long zero,
                                              int* __restrict__ out, unsigned char* __restrict__ whole) {
    int tile = blockIdx.x * blockDim.x + threadIdx.x;
    if (tile >= n) return;
    whole[tile] = decode(stored + start[tile], length[tile], pixel_bytes, block_pix, zero, out + place[tile], count[tile]);
}
