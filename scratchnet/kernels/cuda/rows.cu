// Sums of what the blocks of a row left, in the order of the blocks; and numbers rounded to bfloat16 and back.

// out (C, width) = the sums over blocks of parts (C, blocks, width).
template <class T> __global__ void combine_sums(const sum_t<T>* parts, sum_t<T>* out, int channels, int blocks, int width) {
  for (int i = first_in_row(); i < channels * width; i += row_stride()) {
    const sum_t<T>* part = parts + (long long)(i / width) * blocks * width + i % width;
    sum_t<T> sum = 0;
    for (int b = 0; b < blocks; ++b) sum += part[(long long)b * width];
    out[i] = sum;
  }
}

// From what is computed in to what is stored, and back.
template <class T> __global__ void narrow(const sum_t<T>* x, T* y, int m) {
  for (int i = first_in_row(); i < m; i += row_stride()) y[i] = T(x[i]);
}

template <class T> __global__ void widen(const T* x, sum_t<T>* y, int m) {
  for (int i = first_in_row(); i < m; i += row_stride()) y[i] = sum_t<T>(x[i]);
}
