// Batch norm over rows (C, M), with or without the ReLU6 behind it (CLIP). With it, what backward needs is made again from
// x: whether y lay between the bounds is the same computation as y itself, so that y need not be read.

// Parts (C, blocks, 3): count, mean and squares of each share of a row.
template <class T, int V> __global__ void row_moments(const T* x, sum_t<T>* parts, int m) {
  write_moments(share_of_row<T, V>(x, m), parts);
}

template <class T, int V, bool CLIP>
__global__ void normalise(const T* x, const sum_t<T>* mean, const sum_t<T>* inv_std, const sum_t<T>* weight,
                          const sum_t<T>* bias, T* y, int m) {
  const int c = blockIdx.y;
  const sum_t<T> m_c = mean[c], scale = weight[c] * inv_std[c], bias_c = bias[c];
  const T* row = x + row_start(m);
  T* out = y + row_start(m);
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V> p = pack<T, V>(row, i);
    for (int k = 0; k < V; ++k) {
      const sum_t<T> value = affine(sum_t<T>(p.v[k]), m_c, scale, bias_c);  // (BN.3), (BN.4)
      p.v[k] = T(CLIP ? clip6(value) : value);                              // (DWF.2)
    }
    pack<T, V>(out, i) = p;
  }
}

// Parts (C, blocks, 2): Σ g and Σ g · (x - mean), g being dy behind the mask.
template <class T, int V, bool CLIP>
__global__ void row_products(const T* dy, const T* x, const sum_t<T>* mean, const sum_t<T>* inv_std,
                             const sum_t<T>* weight, const sum_t<T>* bias, sum_t<T>* parts, int m) {
  const int c = blockIdx.y;
  const sum_t<T> m_c = mean[c], scale = weight[c] * inv_std[c], bias_c = bias[c];
  sum_t<T> sums[2] = {0, 0};
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    const Pack<T, V> grad = pack<T, V>(dy + row_start(m), i), in = pack<T, V>(x + row_start(m), i);
    for (int k = 0; k < V; ++k) {
      const sum_t<T> value = sum_t<T>(in.v[k]);
      const sum_t<T> g = through_clip<CLIP>(sum_t<T>(grad.v[k]), value, m_c, scale, bias_c);
      sums[0] += g;
      sums[1] += g * (value - m_c);
    }
  }
  write_sums(sums, parts);
}

// The same, and what comes through a shortcut, added before y is rounded.
template <class T, int V>
__global__ void normalise_and_add(const T* x, const sum_t<T>* mean, const sum_t<T>* inv_std, const sum_t<T>* weight,
                                  const sum_t<T>* bias, const T* shortcut, T* y, int m) {
  const int c = blockIdx.y;
  const sum_t<T> m_c = mean[c], scale = weight[c] * inv_std[c], bias_c = bias[c];
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    Pack<T, V> p = pack<T, V>(x + row_start(m), i);
    const Pack<T, V> other = pack<T, V>(shortcut + row_start(m), i);
    for (int k = 0; k < V; ++k)
      p.v[k] = T(affine(sum_t<T>(p.v[k]), m_c, scale, bias_c) + sum_t<T>(other.v[k]));  // (PROJ.2)
    pack<T, V>(y + row_start(m), i) = p;
  }
}

// dx of batch norm (BN.7), with CLIP from dy behind the mask (DWF.3).
template <class T, int V, bool CLIP>
__global__ void norm_gradient(const T* dy, const T* x, const sum_t<T>* mean, const sum_t<T>* inv_std,
                              const sum_t<T>* weight, const sum_t<T>* bias, const sum_t<T>* dweight,
                              const sum_t<T>* dbias, T* dx, int m) {
  const int c = blockIdx.y;
  const sum_t<T> m_c = mean[c], scale = weight[c] * inv_std[c], bias_c = bias[c];
  const sum_t<T> through_mean = dbias[c] / m, through_var = inv_std[c] * dweight[c] / m;
  for (int i = first_in_row(); i < m / V; i += row_stride()) {
    const Pack<T, V> grad = pack<T, V>(dy + row_start(m), i), in = pack<T, V>(x + row_start(m), i);
    Pack<T, V> out;
    for (int k = 0; k < V; ++k) {
      const sum_t<T> value = sum_t<T>(in.v[k]);
      const sum_t<T> g = through_clip<CLIP>(sum_t<T>(grad.v[k]), value, m_c, scale, bias_c);
      const sum_t<T> h = g - through_mean - through_var * (value - m_c);  // (DWF.5)
      out.v[k] = T(scale * h);
    }
    pack<T, V>(dx + row_start(m), i) = out;
  }
}

// The gradient of rows that are alike goes through (BN.7), in place. The grid's rows beyond `wide` are those of `behind`:
// copies of the rows of x, then ones.
template <class T, int V>
__global__ void alike_gradient(const T* z, const T* x, const int* alike, const sum_t<T>* mean, const sum_t<T>* inv_std,
                               const sum_t<T>* weight, const sum_t<T>* dweight, const sum_t<T>* dbias, T* g, T* behind,
                               int m, int wide, int channels) {
  const int c = blockIdx.y;
  if (c >= wide) {
    const long long start = (long long)(c - wide) * m;
    Pack<T, V> ones;
    for (int k = 0; k < V; ++k) ones.v[k] = T(1);
    for (int i = first_in_row(); i < m / V; i += row_stride())
      pack<T, V>(behind + start, i) = c < wide + channels ? pack<T, V>(x + start, i) : ones;
  } else if (alike[c]) {
    const sum_t<T> m_c = mean[c], scale = weight[c] * inv_std[c];
    const sum_t<T> through_mean = dbias[c] / m, through_var = inv_std[c] * dweight[c] / m;
    for (int i = first_in_row(); i < m / V; i += row_stride()) {
      const Pack<T, V> in = pack<T, V>(z + row_start(m), i);
      Pack<T, V> p = pack<T, V>(g + row_start(m), i);
      for (int k = 0; k < V; ++k)
        p.v[k] = T(scale * (sum_t<T>(p.v[k]) - through_mean - through_var * (sum_t<T>(in.v[k]) - m_c)));
      pack<T, V>(g + row_start(m), i) = p;
    }
  }
}

// Second passes: what the blocks of a row left is added up, by a block a channel, always in the same order.

// Mean, biased variance and 1/√(variance + eps) from parts (C, blocks, 3).
template <class T>
__global__ void combine_moments(const sum_t<T>* parts, sum_t<T>* mean, sum_t<T>* var, sum_t<T>* inv_std, sum_t<T> eps,
                                int blocks) {
  const int c = blockIdx.y;
  Moments<sum_t<T>> all = {0, 0, 0};
  for (int b = threadIdx.x; b < blocks; b += blockDim.x) {
    const sum_t<T>* part = parts + 3 * ((long long)c * blocks + b);
    add_moments(all, {part[0], part[1], part[2]});
  }
  all = moments_of_block(all);
  if (threadIdx.x == 0) {
    mean[c] = all.mean;                   // (BN.1)
    var[c] = all.squares / all.count;     // (BN.2)
    inv_std[c] = 1 / sqrt(var[c] + eps);  // (BN.3), the s in it
  }
}

// dbias and dweight from parts (C, blocks, 2 + count) of Σ g and Σ g · (x - mean); and the sums (C, count) of the others.
template <class T>
__global__ void combine_products(const sum_t<T>* parts, const sum_t<T>* inv_std, sum_t<T>* dweight, sum_t<T>* dbias,
                                 sum_t<T>* others, int blocks, int count) {
  const int c = blockIdx.y, width = 2 + count;
  for (int k = 0; k < width; ++k) {
    sum_t<T> sums[1] = {0};
    for (int b = threadIdx.x; b < blocks; b += blockDim.x) sums[0] += parts[row_start(blocks * width) + b * width + k];
    sum_block(sums);
    if (threadIdx.x != 0) continue;
    if (k == 0) dbias[c] = sums[0];                      // (BN.5), (DWF.4)
    else if (k == 1) dweight[c] = sums[0] * inv_std[c];  // (BN.6), (DWF.4)
    else others[row_start(count) + k - 2] = sums[0];
  }
}
