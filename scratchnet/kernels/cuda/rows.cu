// Sums of what the blocks of a row left, by a block a channel; and numbers rounded to bfloat16 and back.

// out (C, width) = the sums over blocks of parts (C, blocks, width).
template <class T> __global__ void combine_sums(const sum_t<T>* parts, sum_t<T>* out, int blocks, int width) {
  for (int k = 0; k < width; ++k) {
    sum_t<T> sums[1] = {0};
    for (int b = threadIdx.x; b < blocks; b += blockDim.x) sums[0] += parts[row_start(blocks * width) + b * width + k];
    sum_block(sums);
    if (threadIdx.x == 0) out[row_start(width) + k] = sums[0];
  }
}

// From what is computed in to what is stored, and back.
template <class T> __global__ void narrow(const sum_t<T>* x, T* y, int m) {
  for (int i = first_in_row(); i < m; i += row_stride()) y[i] = T(x[i]);
}

template <class T> __global__ void widen(const T* x, sum_t<T>* y, int m) {
  for (int i = first_in_row(); i < m; i += row_stride()) y[i] = sum_t<T>(x[i]);
}
