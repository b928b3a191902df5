// One step of an optimizer over a flat buffer of parameters: everything is read once and written once.

template <class T> __global__ void sgd(T* data, const T* grad, sum_t<T> lr, sum_t<T> decay, int m) {
  for (int i = first_in_row(); i < m; i += row_stride()) {
    const sum_t<T> p = sum_t<T>(data[i]), g = sum_t<T>(grad[i]) + decay * p;  // (SGD.1)
    data[i] = T(p - lr * g);                                                  // (SGD.4)
  }
}

template <class T, bool NESTEROV>
__global__ void sgd_momentum(T* data, const T* grad, T* velocity, sum_t<T> lr, sum_t<T> momentum, sum_t<T> decay, int m) {
  for (int i = first_in_row(); i < m; i += row_stride()) {
    const sum_t<T> p = sum_t<T>(data[i]), g = sum_t<T>(grad[i]) + decay * p;  // (SGD.1)
    const sum_t<T> v = momentum * sum_t<T>(velocity[i]) + g;                  // (SGD.2)
    velocity[i] = T(v);
    data[i] = T(p - lr * (NESTEROV ? g + momentum * v : v));                  // (SGD.3), (SGD.4)
  }
}

// rest: 1 - α, rounded once, from double. mean and velocity are touched where there are such.
template <class T, bool CENTERED, bool MOMENTUM>
__global__ void rmsprop(T* data, const T* grad, T* square, T* mean, T* velocity, sum_t<T> lr, sum_t<T> alpha, sum_t<T> rest,
                        sum_t<T> eps, sum_t<T> momentum, sum_t<T> decay, int m) {
  for (int i = first_in_row(); i < m; i += row_stride()) {
    const sum_t<T> p = sum_t<T>(data[i]), g = sum_t<T>(grad[i]) + decay * p;  // (RMS.1)
    const sum_t<T> second = alpha * sum_t<T>(square[i]) + rest * g * g;       // (RMS.2)
    square[i] = T(second);
    sum_t<T> spread = second;
    if (CENTERED) {
      const sum_t<T> first = alpha * sum_t<T>(mean[i]) + rest * g;  // (RMS.3)
      mean[i] = T(first);
      spread -= first * first;
      if (spread < 0) spread = 0;  // (RMS.4)
    }
    sum_t<T> d = g / (sqrt(spread) + eps);  // (RMS.5)
    if (MOMENTUM) {
      d += momentum * sum_t<T>(velocity[i]);  // (RMS.6)
      velocity[i] = T(d);
    }
    data[i] = T(p - lr * d);  // (RMS.7)
  }
}

// rate: lr / (1 - β₁ᵗ); inv_root: 1 / √(1 - β₂ᵗ). rest1, rest2: 1 - β, rounded once, from double.
template <class T>
__global__ void adam(T* data, const T* grad, T* mean, T* square, sum_t<T> rate, sum_t<T> beta1, sum_t<T> beta2,
                     sum_t<T> rest1, sum_t<T> rest2, sum_t<T> inv_root, sum_t<T> eps, sum_t<T> decay, int m) {
  for (int i = first_in_row(); i < m; i += row_stride()) {
    const sum_t<T> p = sum_t<T>(data[i]), g = sum_t<T>(grad[i]) + decay * p;   // (ADAM.1)
    const sum_t<T> first = beta1 * sum_t<T>(mean[i]) + rest1 * g;              // (ADAM.2)
    const sum_t<T> second = beta2 * sum_t<T>(square[i]) + rest2 * g * g;       // (ADAM.3)
    mean[i] = T(first);
    square[i] = T(second);
    data[i] = T(p - rate * (first / (sqrt(second) * inv_root + eps)));         // (ADAM.4), (ADAM.5)
  }
}
