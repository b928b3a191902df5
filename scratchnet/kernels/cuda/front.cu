// What the front of a block needs of its expansion Z = W X beside X itself: statistics without Z, gradients without dZ
// (fused/pointwise.py). W is (E, C) as the product takes it, rounded where it is stored in bfloat16. All sums are of this rank.

// Mean and biased variance of row e of Z, by a block each, from `second` (C, C), X Xᵀ, and the parts (C, blocks, 3) of X. Kept
// for the gradients are the mean of each row of X and mixed (E, C), W X Xᵀ / M. X is not centred: that would be a copy. What
// digits the variance has left follows from the sizes of what is subtracted. Where these are too few the row is alike, 1, and
// is read. Which rows are is decided here, since to decide it elsewhere would be to wait for the device.
template <class T, int V>
__global__ void covariance_moments(const T* w, const sum_t<T>* second, const sum_t<T>* parts, const T* z,
                                   sum_t<T>* mixed, sum_t<T>* mean_x, sum_t<T>* mean, sum_t<T>* var,
                                   sum_t<T>* inv_std, int* alike, sum_t<T> eps, sum_t<T> least, int m, int channels,
                                   int blocks) {
  using A = sum_t<T>;
  SHARED(int, few_digits, [1]);
  const int e = blockIdx.y;
  const T* own = w + row_start(channels);
  A sums[3] = {0, 0, 0};  // Σ z, Σ z², and the most that the root of the latter's mean could be
  for (int i = threadIdx.x; i < channels * blocks; i += blockDim.x)
    sums[0] += A(own[i / blocks]) * (parts[3 * i] * parts[3 * i + 1]);
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    A product = 0;
    for (int d = 0; d < channels; ++d) product += A(own[d]) * second[d * channels + c];
    mixed[row_start(channels) + c] = product / m;
    sums[1] += A(own[c]) * product;
    sums[2] += fabs(A(own[c])) * sqrt(second[c * channels + c] / m);
  }
  sum_block(sums);
  if (threadIdx.x == 0) {
    mean[e] = sums[0] / m;                                                   // (FUSE.3)
    var[e] = sums[1] / m - mean[e] * mean[e];                                // (FUSE.2), (FUSE.3)
    few_digits[0] = !(var[e] + eps >= least / channels * sums[2] * sums[2]);  // true of NaN too
    alike[e] = few_digits[0];
  }
  __syncthreads();
  if (few_digits[0]) {
    const Moments<A> all = moments_of_block(share_of_row<T, V>(z, m));
    if (threadIdx.x == 0) {
      mean[e] = all.mean;
      var[e] = all.squares / all.count;
    }
  }
  if (threadIdx.x == 0) inv_std[e] = 1 / sqrt(var[e] + eps);  // (BN.3), the s in it
  for (int c = e; c < channels; c += gridDim.y) {
    A sum[1] = {0};
    for (int b = threadIdx.x; b < blocks; b += blockDim.x) {
      const A* part = parts + 3 * (c * blocks + b);
      sum[0] += part[0] * part[1];
    }
    sum_block(sum);
    if (threadIdx.x == 0) mean_x[c] = sum[0] / m;  // (FUSE.1)
  }
}

// What (FUSE.10) and (FUSE.11) are beside products with G, which has a g in its first E rows, then X, then two rows of ones:
// factor (E + C + 2, C), so that dX is factorᵀ G, and dweight (E, C), to which a g Xᵀ is to be added. A block a column.
//
// dX's rows must sum to 0, and rounding must not add a number to all of a row: so the mean of X is multiplied by mix as it is
// rounded, and the column of ones has two numbers, the second what rounding leaves of the first. `coarse`: the product rounds
// float32 (TF32), to at least as many digits as bfloat16 has.
template <class T>
__global__ void front_factor(const T* w, const sum_t<T>* mixed, const sum_t<T>* mean_x, const int* alike,
                             const sum_t<T>* own_mean, const sum_t<T>* mean, const sum_t<T>* inv_std,
                             const sum_t<T>* gamma, const sum_t<T>* dgamma, const sum_t<T>* dbeta, T* factor,
                             sum_t<T>* dweight, int m, int wide, int channels, int coarse) {
  using A = sum_t<T>;
  SHARED(A, of_warps, [32][32]);
  const int c = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const auto kept = [&](A x) { return coarse ? A(float(bfloat16(float(x)))) : A(T(x)); };
  const auto through_var = [&](int e) {  // a s dγ/M
    return alike[e] ? A(0) : gamma[e] * inv_std[e] * inv_std[e] * dgamma[e] / m;
  };
  A shift[1] = {0};
  for (int e = threadIdx.x; e < wide; e += blockDim.x) {
    const long long i = (long long)e * channels + c;
    const A through_mean = alike[e] ? A(0) : gamma[e] * inv_std[e] * dbeta[e] / m;
    factor[i] = w[i];
    dweight[i] = -m * (through_var(e) * mixed[i] + (through_mean - through_var(e) * mean[e]) * mean_x[c]);  // (FUSE.10)
    shift[0] -= A(w[i]) * (through_mean + through_var(e) * (own_mean[e] - mean[e]));                        // (FUSE.11)
  }
  for (int first = 0; first < channels; first += 32) {
    const int d = first + lane;
    A sum = 0;
    if (d < channels)
      for (int e = warp; e < wide; e += warps) {
        const T* row = w + (long long)e * channels;
        sum += through_var(e) * A(row[c]) * A(row[d]);
      }
    of_warps[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && d < channels) {
      for (int k = 1; k < warps; ++k) sum += of_warps[k][lane];
      const A mix = kept(sum);
      factor[(long long)(wide + d) * channels + c] = T(-mix);  // (FUSE.11), its second term
      shift[0] += mix * mean_x[d];
    }
    __syncthreads();  // before the next columns are written to of_warps
  }
  sum_block(shift);
  if (threadIdx.x == 0) {
    const A most = kept(shift[0]);
    factor[(long long)(wide + channels) * channels + c] = T(most);
    factor[(long long)(wide + channels + 1) * channels + c] = T(shift[0] - most);
  }
}
