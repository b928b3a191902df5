// The two copies of a convolution by matrix product: cols (C, KH, KW, OH, OW, N). blockIdx.y is the channel.

// Zero where a window hangs over the border.
template <class T>
__global__ void im2col(const T* x, T* cols, int h, int w, int n, int oh, int ow, int kh, int kw, int sh, int sw, int ph,
                       int pw, int dh, int dw) {
  const int count = oh * ow * n;
  const T* in = x + row_start(h * w * n);
  for (int tap = 0; tap < kh * kw; ++tap)
    for (int i = first_in_row(); i < count; i += row_stride()) {
      const int picture = i % n, q = i / n % ow, p = i / n / ow;
      const int row = p * sh + tap / kw * dh - ph, column = q * sw + tap % kw * dw - pw;
      const bool inside = row >= 0 && row < h && column >= 0 && column < w;
      cols[(row_start(kh * kw) + tap) * count + i] = inside ? in[(row * w + column) * n + picture] : T(0);  // (CONV.2)
    }
}

// dx: every pixel adds up the entries that were copied from it.
template <class T>
__global__ void col2im(const T* dcols, T* dx, int h, int w, int n, int oh, int ow, int kh, int kw, int sh, int sw, int ph,
                       int pw, int dh, int dw) {
  const int count = h * w * n;
  const T* grad = dcols + row_start(kh * kw) * (oh * ow * n);
  for (int i = first_in_row(); i < count; i += row_stride()) {
    const int picture = i % n, column = i / n % w, row = i / n / w;
    sum_t<T> sum = 0;
    for (int a = 0; a < kh; ++a) {
      const int down = row + ph - a * dh, p = down / sh;
      if (down < 0 || p * sh != down || p >= oh) continue;
      for (int b = 0; b < kw; ++b) {
        const int right = column + pw - b * dw, q = right / sw;
        if (right < 0 || q * sw != right || q >= ow) continue;
        sum += sum_t<T>(grad[(((long long)(a * kw + b) * oh + p) * ow + q) * n + picture]);  // (CONV.7)
      }
    }
    dx[row_start(count) + i] = T(sum);
  }
}
