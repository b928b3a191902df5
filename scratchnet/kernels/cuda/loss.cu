// Softmax cross entropy of logits (K, N): one thread a picture, so that a warp reads 32 neighbouring pictures of a class.

template <class T>
__global__ void cross_entropy_forward(const T* logits, const long long* labels, T* log_p, T* target, sum_t<T>* parts,
                                      sum_t<T> smoothing, int classes, int n) {
  sum_t<T> sums[1] = {0};
  for (int i = first_in_row(); i < n; i += row_stride()) {
    sum_t<T> largest = sum_t<T>(logits[i]), total = 0;
    for (int k = 1; k < classes; ++k) {
      const sum_t<T> z = sum_t<T>(logits[(long long)k * n + i]);
      largest = z > largest ? z : largest;
    }
    for (int k = 0; k < classes; ++k) total += exp(sum_t<T>(logits[(long long)k * n + i]) - largest);
    const sum_t<T> log_total = log(total);
    for (int k = 0; k < classes; ++k) {
      const long long at = (long long)k * n + i;
      const sum_t<T> value = sum_t<T>(logits[at]) - largest - log_total;                      // (CE.1)
      const sum_t<T> wanted = (labels[i] == k) * (1 - smoothing) + smoothing / classes;       // (CE.2)
      log_p[at] = T(value);
      target[at] = T(wanted);
      sums[0] -= wanted * value;  // (CE.3)
    }
  }
  sum_block(sums);
  if (threadIdx.x == 0) parts[blockIdx.x] = sums[0] / n;
}

template <class T> __global__ void cross_entropy_backward(const T* log_p, const T* target, T* dz, sum_t<T> factor, int m) {
  for (int i = first_in_row(); i < m; i += row_stride())
    dz[i] = T((exp(sum_t<T>(log_p[i])) - sum_t<T>(target[i])) * factor);  // (CE.4)
}
