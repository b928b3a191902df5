// The same done to many small arrays, in one launch: blockIdx.y is the row of a table, which comes with the launch, by value
// (at most 4 KB). What a column is and how many rows there may be, `launch_rows` reads here.

template <class T> struct Sums { T* total[192]; const T* term[192]; int size[192]; };

// What backward adds to the gradients of parameters.
template <class T> __global__ void add_to_all(Sums<T> rows) {
  T* total = rows.total[blockIdx.y];
  const T* term = rows.term[blockIdx.y];
  const int m = rows.size[blockIdx.y];
  for (int i = first_in_row(); i < m; i += row_stride()) total[i] = T(sum_t<T>(total[i]) + sum_t<T>(term[i]));
}

template <class T> struct Narrowed { T* y[192]; const sum_t<T>* x[192]; int size[192]; };

// Weights, rounded to what activations are stored in.
template <class T> __global__ void narrow_all(Narrowed<T> rows) {
  T* y = rows.y[blockIdx.y];
  const sum_t<T>* x = rows.x[blockIdx.y];
  const int m = rows.size[blockIdx.y];
  for (int i = first_in_row(); i < m; i += row_stride()) y[i] = T(x[i]);
}

template <class T> struct Tracked {
  sum_t<T>* running_mean[64];
  sum_t<T>* running_var[64];
  long long* batches[64];
  const sum_t<T>* mean[64];
  const sum_t<T>* var[64];
  sum_t<T> momentum[64];
  sum_t<T> unbiased[64];
  int size[64];
};

// The statistics of a batch, taken into the running ones; batches: one number, how many there were.
template <class T> __global__ void track_all(Tracked<T> rows) {
  const int k = blockIdx.y, m = rows.size[k];
  sum_t<T>*mean = rows.running_mean[k], *var = rows.running_var[k];
  for (int c = first_in_row(); c < m; c += row_stride()) {
    mean[c] += rows.momentum[k] * (rows.mean[k][c] - mean[c]);                    // (BN.9)
    var[c] += rows.momentum[k] * (rows.var[k][c] * rows.unbiased[k] - var[c]);    // (BN.10)
    if (c == 0) ++*rows.batches[k];
  }
}
