// Depthwise convolution: x (C, H, W, N), weight (C, KH, KW) -> y (C, OH, OW, N). sh, sw: stride; ph, pw: padding; dh, dw:
// dilation, all in pixels.
//
// Nearly always the window is 3×3, its stride S 1 or 2 both ways, with no dilation. Then a thread takes V pictures, which
// are one word, and slides down a column of `rows` rows: what is read is added to all that needs it, and forgotten. What the
// two columns beside it need as well comes from the cache. Where no whole number of words fills a row of N pictures, the
// next pixel begins in the middle of one: V is 1 then, and a warp reads 32 neighbouring pictures.
//
// What goes in and what comes out is said by the kernels below, as functions of a word's place in its channel: so the
// convolution of the front of a block (fused/front.py) is the same one.

struct Map {
  int h, w, words, oh, ow, ph, pw, rows;  // words: of the pictures of a pixel
};

// `input(i, v)` gives word i of x, `output(i, v)` takes word i of y.
template <int V, int S, class A, class Input, class Output>
__device__ void slide(const A* weight, const Map map, Input input, Output output) {
  A taps[9];
#pragma unroll
  for (int k = 0; k < 9; ++k) taps[k] = weight[blockIdx.y * 9 + k];
  const int count = (map.oh + map.rows - 1) / map.rows * map.ow * map.words;
  for (int i = first_in_row(); i < count; i += row_stride()) {
    const int word = i % map.words, q = i / map.words % map.ow, first = i / map.words / map.ow * map.rows;
    const int end = first + map.rows < map.oh ? first + map.rows : map.oh;
    A sums[3][V] = {};  // of y's rows p, p + 1 and p + 2, as far as x was read
    for (int p = first - (S == 1 ? 2 : 1); p < end; ++p) {
#pragma unroll
      for (int s = 3 - S; s < 3; ++s) {  // the rows of p's window that no window above it has
        const int row = p * S + s - map.ph;
        if (p * S + s < first * S || row < 0 || row >= map.h) continue;
#pragma unroll
        for (int b = 0; b < 3; ++b) {
          const int column = q * S + b - map.pw;
          if (column < 0 || column >= map.w) continue;
          A v[V];
          input((row * map.w + column) * map.words + word, v);
#pragma unroll
          for (int j = 0; j < 3; ++j)
            if (j * S <= s)  // it is row s - j · S of the window of p + j
#pragma unroll
              for (int k = 0; k < V; ++k) sums[j][k] += taps[(s - j * S) * 3 + b] * v[k];  // (CONV.8)
        }
      }
      if (p >= first) output((p * map.ow + q) * map.words + word, sums[0]);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        sums[0][k] = sums[1][k];
        sums[1][k] = sums[2][k];
        sums[2][k] = 0;
      }
    }
  }
}

// Both gradients at once, since a pixel of x is seen by the same outputs for either. `input(i, v)` gives word i of x,
// `gradient(i, v)` of y's gradient h, `output(i, v)` takes word i of dx; this thread's part of dweight is added to `sums`.
template <int V, int S, class A, class Input, class Gradient, class Output>
__device__ void slide_back(const A (&taps)[9], A (&sums)[9], const Map map, Input input, Gradient gradient,
                           Output output) {
  const int count = (map.h + map.rows - 1) / map.rows * map.w * map.words;
  for (int i = first_in_row(); i < count; i += row_stride()) {
    const int word = i % map.words, column = i / map.words % map.w, first = i / map.words / map.w * map.rows;
    const int end = first + map.rows < map.h ? first + map.rows : map.h;
    A x[3][V] = {}, dx[3][V] = {};  // of the three rows that y's row p sees; x is 0 where another thread has the row
    for (int p = (first + map.ph + S - 1) / S - (S == 1 ? 2 : 1); p * S - map.ph < end; ++p) {
#pragma unroll
      for (int s = 3 - S; s < 3; ++s) {  // the rows that no output above p sees
        const int row = p * S + s - map.ph;
        if (row >= first && row < end) {
          input((row * map.w + column) * map.words + word, x[s]);
        } else {
#pragma unroll
          for (int k = 0; k < V; ++k) x[s][k] = 0;
        }
      }
      if (p >= 0 && p < map.oh)
#pragma unroll
        for (int b = 0; b < 3; ++b) {
          const int right = column + map.pw - b, q = right / S;
          if (right < 0 || q * S != right || q >= map.ow) continue;
          A h[V];
          gradient((p * map.ow + q) * map.words + word, h);
#pragma unroll
          for (int s = 0; s < 3; ++s) {
            A product = 0;
#pragma unroll
            for (int k = 0; k < V; ++k) {
              dx[s][k] += taps[s * 3 + b] * h[k];  // (CONV.10)
              product += x[s][k] * h[k];           // (CONV.9)
            }
            sums[s * 3 + b] += product;
          }
        }
#pragma unroll
      for (int s = 0; s < S; ++s) {  // the rows that no output below p sees
        const int row = p * S + s - map.ph;
        if (row >= first && row < end) output((row * map.w + column) * map.words + word, dx[s]);
      }
#pragma unroll
      for (int s = 0; s < 3; ++s)
#pragma unroll
        for (int k = 0; k < V; ++k) {
          x[s][k] = s + S < 3 ? x[(s + S) % 3][k] : A(0);
          dx[s][k] = s + S < 3 ? dx[(s + S) % 3][k] : A(0);
        }
    }
  }
}

template <class T, int V, int S>
__global__ void window_forward(const T* x, const sum_t<T>* weight, T* y, int h, int w, int n, int oh, int ow, int ph,
                               int pw, int rows) {
  using A = sum_t<T>;
  const T* in = x + row_start(h * w * n);
  T* out = y + row_start(oh * ow * n);
  slide<V, S>(
      weight, Map{h, w, n / V, oh, ow, ph, pw, rows}, [&](int i, A(&v)[V]) { load<T, V>(in, i, v); },
      [&](int i, const A(&v)[V]) { store<T, V>(out, i, v); });
}

// The same, and the moments of y while it is at hand: parts (C, blocks, 3).
template <class T, int V, int S>
__global__ void window_moments(const T* x, const sum_t<T>* weight, T* y, sum_t<T>* parts, int h, int w, int n, int oh,
                               int ow, int ph, int pw, int rows) {
  using A = sum_t<T>;
  const T* in = x + row_start(h * w * n);
  T* out = y + row_start(oh * ow * n);
  Tally<A> tally;
  slide<V, S>(
      weight, Map{h, w, n / V, oh, ow, ph, pw, rows}, [&](int i, A(&v)[V]) { load<T, V>(in, i, v); },
      [&](int i, const A(&v)[V]) {
        store<T, V>(out, i, v);
        tally.add(v);
      });
  write_moments(tally.moments(), parts);
}

// dx (C, H, W, N), and parts (C, blocks, 9) of dweight.
template <class T, int V, int S>
__global__ void window_backward(const T* dy, const T* x, const sum_t<T>* weight, T* dx, sum_t<T>* parts, int h, int w,
                                int n, int oh, int ow, int ph, int pw, int rows) {
  using A = sum_t<T>;
  const T *grad = dy + row_start(oh * ow * n), *in = x + row_start(h * w * n);
  T* out = dx + row_start(h * w * n);
  A taps[9], sums[9] = {};
#pragma unroll
  for (int k = 0; k < 9; ++k) taps[k] = weight[blockIdx.y * 9 + k];
  slide_back<V, S>(
      taps, sums, Map{h, w, n / V, oh, ow, ph, pw, rows}, [&](int i, A(&v)[V]) { load<T, V>(in, i, v); },
      [&](int i, A(&v)[V]) { load<T, V>(grad, i, v); }, [&](int i, const A(&v)[V]) { store<T, V>(out, i, v); });
  write_sums(sums, parts);
}

// The front of a block: batch norm and ReLU6 of the expansion z1 are applied on the way in, so that y1 is never stored.
// With the moments of z2, parts (C, blocks, 3).
template <class T, int V, int S>
__global__ void front_forward(const T* z1, const sum_t<T>* mean, const sum_t<T>* inv_std, const sum_t<T>* gamma,
                              const sum_t<T>* beta, const sum_t<T>* weight, T* z2, sum_t<T>* parts, int h, int w, int n,
                              int oh, int ow, int ph, int pw, int rows) {
  using A = sum_t<T>;
  const int c = blockIdx.y;
  const T* in = z1 + row_start(h * w * n);
  T* out = z2 + row_start(oh * ow * n);
  const A m = mean[c], scale = gamma[c] * inv_std[c], bias = beta[c];
  Tally<A> tally;
  slide<V, S>(
      weight, Map{h, w, n / V, oh, ow, ph, pw, rows},
      [&](int i, A(&v)[V]) {
        load<T, V>(in, i, v);
#pragma unroll
        for (int k = 0; k < V; ++k) v[k] = clip6(affine(v[k], m, scale, bias));  // (FRONT.2)
      },
      [&](int i, const A(&v)[V]) {
        store<T, V>(out, i, v);
        tally.add(v);
      });
  write_moments(tally.moments(), parts);
}

// Its backward down to the gradient g behind the expansion's ReLU6. h of (DWF.5) is made on the way in, from dy2 and z2, and
// never stored. Parts (C, blocks, 2 + 9): of Σ g and Σ g · (z1 - mean), then of dweight. What is stored is scale1 · g;
// of rows that are alike it is g, from which another kernel takes more away: small numbers that are taken from a stored one
// before it is multiplied are rounded now up, now down, but taken from one that stays as it is they would all be lost.
template <class T, int V, int S>
__global__ void front_backward(const T* dy2, const T* z2, const T* z1, const sum_t<T>* mean2, const sum_t<T>* inv_std2,
                               const sum_t<T>* gamma2, const sum_t<T>* beta2, const sum_t<T>* dgamma2,
                               const sum_t<T>* dbeta2, const sum_t<T>* mean1, const sum_t<T>* inv_std1,
                               const sum_t<T>* gamma1, const sum_t<T>* beta1, const int* alike,
                               const sum_t<T>* weight, T* scaled, sum_t<T>* parts, int h, int w, int n, int oh, int ow,
                               int ph, int pw, int rows) {
  using A = sum_t<T>;
  const int c = blockIdx.y, count = oh * ow * n;
  const T *grad = dy2 + row_start(count), *behind = z2 + row_start(count), *in = z1 + row_start(h * w * n);
  T* out = scaled + row_start(h * w * n);
  const A m1 = mean1[c], scale1 = gamma1[c] * inv_std1[c], bias1 = beta1[c], factor = alike[c] ? A(1) : scale1;
  const A m2 = mean2[c], scale2 = gamma2[c] * inv_std2[c], bias2 = beta2[c];
  const A through_mean = dbeta2[c] / count, through_var = inv_std2[c] * dgamma2[c] / count;
  A taps[9], sums[9] = {}, all[2 + 9] = {};
#pragma unroll
  for (int k = 0; k < 9; ++k) taps[k] = scale2 * weight[c * 9 + k];
  slide_back<V, S>(
      taps, sums, Map{h, w, n / V, oh, ow, ph, pw, rows},
      [&](int i, A(&v)[V]) {
        load<T, V>(in, i, v);
#pragma unroll
        for (int k = 0; k < V; ++k) v[k] = clip6(affine(v[k], m1, scale1, bias1));  // (FRONT.2)
      },
      [&](int i, A(&v)[V]) {
        A z[V];
        load<T, V>(grad, i, v);
        load<T, V>(behind, i, z);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const A masked = through_clip<true>(v[k], z[k], m2, scale2, bias2);
          v[k] = masked - through_mean - through_var * (z[k] - m2);  // (DWF.5)
        }
      },
      [&](int i, const A(&v)[V]) {
        A z[V], kept[V];
        load<T, V>(in, i, z);  // from the cache: it came in two rows ago
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const A g = through_clip<true>(v[k], z[k], m1, scale1, bias1);  // (FRONT.3)
          all[0] += g;                                                    // (FRONT.4)
          all[1] += g * (z[k] - m1);
          kept[k] = factor * g;
        }
        store<T, V>(out, i, kept);
      });
#pragma unroll
  for (int k = 0; k < 9; ++k) all[2 + k] = scale2 * sums[k];  // (DWF.6)
  write_sums(all, parts);
}

// Any window, stride and dilation ----------------------------------------------------------------------------------------

template <class T, class Each>
__device__ void convolve(const T* x, const sum_t<T>* weight, T* y, int h, int w, int n, int oh, int ow, int kh, int kw,
                         int sh, int sw, int ph, int pw, int dh, int dw, Each each) {
  const int count = oh * ow * n;
  const T* in = x + row_start(h * w * n);
  const sum_t<T>* taps = weight + blockIdx.y * kh * kw;
  for (int i = first_in_row(); i < count; i += row_stride()) {
    const int picture = i % n, q = i / n % ow, p = i / n / ow;
    sum_t<T> sum = 0;
    for (int a = 0; a < kh; ++a) {
      const int row = p * sh + a * dh - ph;
      if (row < 0 || row >= h) continue;
      for (int b = 0; b < kw; ++b) {
        const int column = q * sw + b * dw - pw;
        if (column < 0 || column >= w) continue;
        sum += taps[a * kw + b] * sum_t<T>(in[(row * w + column) * n + picture]);  // (CONV.8)
      }
    }
    y[row_start(count) + i] = T(sum);
    each(sum);
  }
}

template <class T>
__global__ void depthwise_forward(const T* x, const sum_t<T>* weight, T* y, int h, int w, int n, int oh, int ow, int kh,
                                  int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  convolve(x, weight, y, h, w, n, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw, [](sum_t<T>) {});
}

// The same, and the moments of y while it is at hand: parts (C, blocks, 3).
template <class T>
__global__ void depthwise_moments(const T* x, const sum_t<T>* weight, T* y, sum_t<T>* parts, int h, int w, int n, int oh,
                                  int ow, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  Tally<sum_t<T>> tally;
  convolve(x, weight, y, h, w, n, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw, [&](sum_t<T> z) { tally.add(z); });
  write_moments(tally.moments(), parts);
}

// dx (C, H, W, N): every pixel collects from the outputs that read it, so that no two threads add to one number.
template <class T>
__global__ void depthwise_input_gradient(const T* dy, const sum_t<T>* weight, T* dx, int h, int w, int n, int oh, int ow,
                                         int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  const int count = h * w * n;
  const T* grad = dy + row_start(oh * ow * n);
  const sum_t<T>* taps = weight + blockIdx.y * kh * kw;
  for (int i = first_in_row(); i < count; i += row_stride()) {
    const int picture = i % n, column = i / n % w, row = i / n / w;
    sum_t<T> sum = 0;
    for (int a = 0; a < kh; ++a) {
      const int down = row + ph - a * dh, p = down / sh;
      if (down < 0 || p * sh != down || p >= oh) continue;
      for (int b = 0; b < kw; ++b) {
        const int right = column + pw - b * dw, q = right / sw;
        if (right < 0 || q * sw != right || q >= ow) continue;
        sum += taps[a * kw + b] * sum_t<T>(grad[(p * ow + q) * n + picture]);  // (CONV.10)
      }
    }
    dx[row_start(count) + i] = T(sum);
  }
}

// Parts (C, blocks, KH·KW) of dweight, one tap after the other.
template <class T>
__global__ void depthwise_weight_gradient(const T* dy, const T* x, sum_t<T>* parts, int h, int w, int n, int oh, int ow,
                                          int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  const int count = oh * ow * n;
  const T *in = x + row_start(h * w * n), *grad = dy + row_start(count);
  sum_t<T>* to = parts + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * kh * kw;
  for (int tap = 0; tap < kh * kw; ++tap) {
    const int down = tap / kw * dh - ph, right = tap % kw * dw - pw;
    sum_t<T> sums[1] = {0};
    for (int i = first_in_row(); i < count; i += row_stride()) {
      const int picture = i % n, row = i / n / ow * sh + down, column = i / n % ow * sw + right;
      if (row >= 0 && row < h && column >= 0 && column < w)
        sums[0] += sum_t<T>(grad[i]) * sum_t<T>(in[(row * w + column) * n + picture]);  // (CONV.9)
    }
    sum_block(sums);
    if (threadIdx.x == 0) to[tap] = sums[0];
  }
}
