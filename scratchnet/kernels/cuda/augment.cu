// A batch from the data set on the device: chosen pictures, mirrored, shifted by reflection, normalised.

__device__ inline int reflect(int i, int size) {
  const int folded = size - 1 - (i < 0 ? -i : i);
  return size - 1 - (folded < 0 ? -folded : folded);
}

// images (total, C, H, W) uint8; draws (4, N): which picture, whether to mirror, pixels down, pixels to the right;
// scale, shift (C,): y = x · scale - shift. Writes are one piece of memory a warp; reads are scattered over the pictures,
// and a byte each.
template <class T>
__global__ void take_batch(const unsigned char* images, const int* draws, const sum_t<T>* scale, const sum_t<T>* shift,
                           T* out, int h, int w, int n) {
  const int count = h * w * n;
  for (int i = first_in_row(); i < count; i += row_stride()) {
    const int picture = i % n, column = i / n % w, row = i / n / w;
    const int from_row = reflect(row + draws[2 * n + picture], h);
    int from_column = reflect(column + draws[3 * n + picture], w);
    if (draws[n + picture]) from_column = w - 1 - from_column;
    const long long plane = (long long)draws[picture] * gridDim.y + blockIdx.y;
    const sum_t<T> pixel = images[(plane * h + from_row) * w + from_column];
    out[row_start(count) + i] = T(pixel * scale[blockIdx.y] - shift[blockIdx.y]);
  }
}
