// Rectifiers and sums: one pass over what is read and one over what is written.

template <class T, int V> __global__ void relu6_forward(const T* x, T* y, int m) {
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V> p = pack<T, V>(x + row_start(m), i);
    for (int k = 0; k < V; ++k) p.v[k] = T(clip6(sum_t<T>(p.v[k])));  // (RELU6.1)
    pack<T, V>(y + row_start(m), i) = p;
  }
}

template <class T, int V> __global__ void relu6_backward(const T* dy, const T* y, T* dx, int m) {
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V> p = pack<T, V>(dy + row_start(m), i);
    const Pack<T, V> out = pack<T, V>(y + row_start(m), i);
    for (int k = 0; k < V; ++k)
      p.v[k] = T(sum_t<T>(p.v[k]) * (at_bound(sum_t<T>(out.v[k])) ? 0 : 1));  // (RELU6.2)
    pack<T, V>(dx + row_start(m), i) = p;
  }
}

template <class T, int V> __global__ void add(const T* a, const T* b, T* y, int m) {
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V> p = pack<T, V>(a + row_start(m), i);
    const Pack<T, V> other = pack<T, V>(b + row_start(m), i);
    for (int k = 0; k < V; ++k) p.v[k] = T(sum_t<T>(p.v[k]) + sum_t<T>(other.v[k]));
    pack<T, V>(y + row_start(m), i) = p;
  }
}

// y = clip(y + bias, 0, 6) in place, behind the matrix product of (FUSE.5).
template <class T, int V> __global__ void clip_rows(T* y, const sum_t<T>* bias, int m) {
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V>& p = pack<T, V>(y + row_start(m), i);
    for (int k = 0; k < V; ++k) p.v[k] = T(clip6(sum_t<T>(p.v[k]) + bias[blockIdx.y]));
  }
}
