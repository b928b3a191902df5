// What a 1×1 convolution with batch norm and ReLU6 needs beside its matrix products (fused/pointwise.py).

template <class T, int V> __global__ void subtract_mean(const T* x, const sum_t<T>* mean, T* out, int m) {
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V> p = pack<T, V>(x + row_start(m), i);
    for (int k = 0; k < V; ++k) p.v[k] = T(sum_t<T>(p.v[k]) - mean[blockIdx.y]);  // (FUSE.1)
    pack<T, V>(out + row_start(m), i) = p;
  }
}

// g (C, M), and parts (C, blocks) of its row sums.
template <class T, int V> __global__ void mask_rows(const T* dy, const T* y, T* g, sum_t<T>* parts, int m) {
  sum_t<T> sums[1] = {0};
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V> p = pack<T, V>(dy + row_start(m), i);
    const Pack<T, V> out = pack<T, V>(y + row_start(m), i);
    for (int k = 0; k < V; ++k) {
      const sum_t<T> value = sum_t<T>(p.v[k]) * (at_bound(sum_t<T>(out.v[k])) ? 0 : 1);
      p.v[k] = T(value);  // (FUSE.6)
      sums[0] += value;   // (FUSE.7)
    }
    pack<T, V>(g + row_start(m), i) = p;
  }
  sum_block(sums);
  if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = sums[0];
}

// dx -= product + shift, the two last terms of (FUSE.11).
template <class T, int V> __global__ void subtract_rows(T* dx, const T* product, const sum_t<T>* shift, int m) {
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V>& p = pack<T, V>(dx + row_start(m), i);
    const Pack<T, V> other = pack<T, V>(product + row_start(m), i);
    for (int k = 0; k < V; ++k) p.v[k] = T(sum_t<T>(p.v[k]) - sum_t<T>(other.v[k]) - shift[blockIdx.y]);
  }
}

// Batch norm moves into the weight W (O, C): one block an output channel. mixed comes as W Xc Xcᵀ and leaves as W K.
template <class T>
__global__ void fold_norm(const sum_t<T>* weight, sum_t<T>* mixed, const sum_t<T>* mean_x, const sum_t<T>* gamma,
                          sum_t<T>* mean, sum_t<T>* var, sum_t<T>* inv_std, sum_t<T>* scaled, sum_t<T> eps, int channels,
                          int m) {
  SHARED(sum_t<T>, scale, [1]);
  const sum_t<T>* row = weight + row_start(channels);
  sum_t<T>* mixed_row = mixed + row_start(channels);
  sum_t<T> sums[2] = {0, 0};
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    mixed_row[c] /= m;
    sums[0] += row[c] * mean_x[c];
    sums[1] += row[c] * mixed_row[c];
  }
  sum_block(sums);
  if (threadIdx.x == 0) {
    const sum_t<T> s = 1 / sqrt(sums[1] + eps);
    mean[blockIdx.y] = sums[0];  // (FUSE.3)
    var[blockIdx.y] = sums[1];
    inv_std[blockIdx.y] = s;
    scale[0] = gamma[blockIdx.y] * s;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < channels; c += blockDim.x) scaled[row_start(channels) + c] = scale[0] * row[c];  // (FUSE.4)
}

// The gradients of W and gamma from P (O, C), and what (FUSE.11) multiplies with: through (O, C), a s dγ/M · W, and
// column (O,), a dβ/M.
template <class T>
__global__ void unfold_norm(const sum_t<T>* weight, const sum_t<T>* mixed, const sum_t<T>* products,
                            const sum_t<T>* gamma, const sum_t<T>* inv_std, const sum_t<T>* dbeta, sum_t<T>* dweight,
                            sum_t<T>* dgamma, sum_t<T>* through, sum_t<T>* column, int channels, int m) {
  SHARED(sum_t<T>, slope, [1]);
  const long long start = row_start(channels);
  const sum_t<T> s = inv_std[blockIdx.y], a = gamma[blockIdx.y] * s;
  sum_t<T> sums[1] = {0};
  for (int c = threadIdx.x; c < channels; c += blockDim.x) sums[0] += weight[start + c] * products[start + c];
  sum_block(sums);
  if (threadIdx.x == 0) {
    slope[0] = s * sums[0];
    dgamma[blockIdx.y] = s * sums[0];  // (FUSE.9)
    column[blockIdx.y] = a * dbeta[blockIdx.y] / m;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    dweight[start + c] = a * (products[start + c] - s * slope[0] * mixed[start + c]);  // (FUSE.10)
    through[start + c] = a * s * slope[0] / m * weight[start + c];
  }
}
