// Depthwise convolution: x (C, H, W, N), weight (C, KH, KW) -> y (C, OH, OW, N). K = 3 is a 3×3 window, whose loops the
// compiler unrolls; K = 0 any other. sh, sw: stride; ph, pw: padding; dh, dw: dilation, all in pixels.

template <class T, int K, class Each>
__device__ void convolve(const T* x, const sum_t<T>* weight, T* y, int h, int w, int n, int oh, int ow, int kh, int kw,
                         int sh, int sw, int ph, int pw, int dh, int dw, Each each) {
  const int count = oh * ow * n;
  const T* in = x + row_start(h * w * n);
  const sum_t<T>* taps = weight + blockIdx.y * kh * kw;
  for (int i = first_in_row(); i < count; i += row_stride()) {
    const int picture = i % n, q = i / n % ow, p = i / n / ow;
    sum_t<T> sum = 0;
#pragma unroll
    for (int a = 0; a < (K ? K : kh); ++a) {
      const int row = p * sh + a * dh - ph;
      if (row < 0 || row >= h) continue;
#pragma unroll
      for (int b = 0; b < (K ? K : kw); ++b) {
        const int column = q * sw + b * dw - pw;
        if (column < 0 || column >= w) continue;
        sum += taps[a * (K ? K : kw) + b] * sum_t<T>(in[(row * w + column) * n + picture]);  // (CONV.8)
      }
    }
    y[row_start(count) + i] = T(sum);
    each(sum);
  }
}

template <class T, int K>
__global__ void depthwise_forward(const T* x, const sum_t<T>* weight, T* y, int h, int w, int n, int oh, int ow, int kh,
                                  int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  convolve<T, K>(x, weight, y, h, w, n, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw, [](sum_t<T>) {});
}

// The same, and the moments of y while it is at hand: parts (C, blocks, 3).
template <class T, int K>
__global__ void depthwise_moments(const T* x, const sum_t<T>* weight, T* y, sum_t<T>* parts, int h, int w, int n, int oh,
                                  int ow, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  Tally<sum_t<T>> tally;
  convolve<T, K>(x, weight, y, h, w, n, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw, [&](sum_t<T> z) { tally.add(z); });
  write_moments(tally.moments(), parts);
}

// dx (C, H, W, N): every pixel collects from the outputs that read it, so that no two threads add to one number.
template <class T, int K>
__global__ void depthwise_input_gradient(const T* dy, const sum_t<T>* weight, T* dx, int h, int w, int n, int oh, int ow,
                                         int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  const int count = h * w * n;
  const T* grad = dy + row_start(oh * ow * n);
  const sum_t<T>* taps = weight + blockIdx.y * kh * kw;
  for (int i = first_in_row(); i < count; i += row_stride()) {
    const int picture = i % n, column = i / n % w, row = i / n / w;
    sum_t<T> sum = 0;
#pragma unroll
    for (int a = 0; a < (K ? K : kh); ++a) {
      const int down = row + ph - a * dh, p = down / sh;
      if (down < 0 || p * sh != down || p >= oh) continue;
#pragma unroll
      for (int b = 0; b < (K ? K : kw); ++b) {
        const int right = column + pw - b * dw, q = right / sw;
        if (right < 0 || q * sw != right || q >= ow) continue;
        sum += taps[a * (K ? K : kw) + b] * sum_t<T>(grad[(p * ow + q) * n + picture]);  // (CONV.10)
      }
    }
    dx[row_start(count) + i] = T(sum);
  }
}

// Parts (C, blocks, KH·KW) of dweight. G taps at a time share one reading of dy: 9 for a 3×3 window, else 1.
template <class T, int G>
__global__ void depthwise_weight_gradient(const T* dy, const T* x, sum_t<T>* parts, int h, int w, int n, int oh, int ow,
                                          int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  const int count = oh * ow * n;
  const T *in = x + row_start(h * w * n), *grad = dy + row_start(count);
  sum_t<T>* to = parts + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * kh * kw;
  for (int tap = 0; tap < kh * kw; tap += G) {
    sum_t<T> sums[G] = {};
    for (int i = first_in_row(); i < count; i += row_stride()) {
      const int picture = i % n, q = i / n % ow, p = i / n / ow;
      const sum_t<T> g = sum_t<T>(grad[i]);
#pragma unroll
      for (int k = 0; k < G; ++k) {
        const int a = G == 9 ? k / 3 : tap / kw, b = G == 9 ? k % 3 : tap % kw;
        const int row = p * sh + a * dh - ph, column = q * sw + b * dw - pw;
        if (row >= 0 && row < h && column >= 0 && column < w)
          sums[k] += g * sum_t<T>(in[(row * w + column) * n + picture]);  // (CONV.9)
      }
    }
    sum_block(sums);
    if (threadIdx.x == 0)
      for (int k = 0; k < G; ++k) to[tap + k] = sums[k];
  }
}
