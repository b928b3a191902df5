// Global average pooling: x (C, pixels, N) -> y (C, N). blockIdx.y is the channel, and a thread takes a picture, so that a
// warp reads 32 neighbouring pictures of a pixel. y is in sum_t<T>: a mean has more bits than what it is the mean of.

template <class T> __global__ void global_pool(const T* x, sum_t<T>* y, int pixels, int n) {
  for (int i = first_in_row(); i < n; i += row_stride()) {
    sum_t<T> sum = 0;
    for (int p = 0; p < pixels; ++p) sum += sum_t<T>(x[row_start(pixels * n) + p * n + i]);
    y[row_start(n) + i] = sum / pixels;  // (GPOOL.1)
  }
}

template <class T> __global__ void global_pool_gradient(const sum_t<T>* dy, T* dx, int pixels, int n) {
  for (int i = first_in_row(); i < n; i += row_stride()) {
    const T share = T(dy[row_start(n) + i] / pixels);
    for (int p = 0; p < pixels; ++p) dx[row_start(pixels * n) + p * n + i] = share;  // (GPOOL.2)
  }
}
