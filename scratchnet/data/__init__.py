"""Pictures to train on: CIFAR-10 read, fetched or replaced by drawn shapes, and pictures of one's own."""
