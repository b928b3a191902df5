// Second passes: what the blocks of a row left is added up in the order of the blocks. One thread a channel.

// Mean, biased variance and 1/√(variance + eps) from parts (C, blocks, 3).
template <class T>
__global__ void combine_moments(const sum_t<T>* parts, sum_t<T>* mean, sum_t<T>* var, sum_t<T>* inv_std, sum_t<T> eps,
                                int channels, int blocks) {
  for (int c = first_in_row(); c < channels; c += row_stride()) {
    Moments<sum_t<T>> all = {0, 0, 0};
    for (int b = 0; b < blocks; ++b) {
      const sum_t<T>* part = parts + 3 * ((long long)c * blocks + b);
      add_moments(all, {part[0], part[1], part[2]});
    }
    mean[c] = all.mean;                    // (BN.1)
    var[c] = all.squares / all.count;      // (BN.2)
    inv_std[c] = 1 / sqrt(var[c] + eps);   // (BN.3), the s in it
  }
}

// out (C, width) = the sums over blocks of parts (C, blocks, width).
template <class T> __global__ void combine_sums(const sum_t<T>* parts, sum_t<T>* out, int channels, int blocks, int width) {
  for (int i = first_in_row(); i < channels * width; i += row_stride()) {
    const sum_t<T>* part = parts + (long long)(i / width) * blocks * width + i % width;
    sum_t<T> sum = 0;
    for (int b = 0; b < blocks; ++b) sum += part[(long long)b * width];
    out[i] = sum;
  }
}

// dbias and dweight from parts (C, blocks, 2) of Σ g and Σ g · (x - mean).
template <class T>
__global__ void combine_products(const sum_t<T>* parts, const sum_t<T>* inv_std, sum_t<T>* dweight, sum_t<T>* dbias,
                                 int channels, int blocks) {
  for (int c = first_in_row(); c < channels; c += row_stride()) {
    sum_t<T> sum = 0, product = 0;
    for (int b = 0; b < blocks; ++b) {
      sum += parts[2 * ((long long)c * blocks + b)];
      product += parts[2 * ((long long)c * blocks + b) + 1];
    }
    dbias[c] = sum;                    // (BN.5), (DWF.4)
    dweight[c] = product * inv_std[c];  // (BN.6), (DWF.4)
  }
}

// The statistics of a batch of m numbers a channel, taken into the running ones; counter: one number, batches so far.
template <class T>
__global__ void track_statistics(sum_t<T>* running_mean, sum_t<T>* running_var, long long* counter, const sum_t<T>* mean,
                                 const sum_t<T>* var, sum_t<T> momentum, sum_t<T> unbiased, int channels) {
  for (int c = first_in_row(); c < channels; c += row_stride()) {
    running_mean[c] += momentum * (mean[c] - running_mean[c]);            // (BN.9)
    running_var[c] += momentum * (var[c] * unbiased - running_var[c]);    // (BN.10)
    if (c == 0) ++*counter;
  }
}
