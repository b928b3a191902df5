"""The same three MobileNetV2 variants in PyTorch: the peer of the benchmarks and the judge of the parity tests.

Written after torchvision's module structure (so that its state_dict keys are torchvision's) and independent of `models/`.
"""

import torch
from torch import nn


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm, ReLU6."""

    def __init__(self, cin, cout, kernel=3, stride=1, groups=1):
        conv = nn.Conv2d(cin, cout, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project."""

    def __init__(self, cin, cout, stride, t, expand_always):
        super().__init__()
        wide = cin * t
        layers = [ConvBNReLU(cin, wide, 1)] if t != 1 or expand_always else []
        layers += [ConvBNReLU(wide, wide, 3, stride, wide), nn.Conv2d(wide, cout, 1, bias=False), nn.BatchNorm2d(cout)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x):
        """Add the shortcut where there is one."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


def make_divisible(v, divisor=8):
    """Torchvision's rounding of channel counts."""
    new = max(divisor, int(v + divisor / 2) // divisor * divisor)
    return new + divisor if new < 0.9 * v else new


class TorchMobileNetV2(nn.Module):
    """The variants "imagenet", "cifar" and "blog"."""

    def __init__(self, num_classes=10, width=1.0, variant="cifar", dropout=0.2):
        super().__init__()
        blog = variant == "blog"
        strides = (1, 1, 2, 2, 1, 2, 1) if variant == "cifar" else (1, 2, 2, 2, 1, 2, 1)
        round_to = int if blog else make_divisible
        cin = round_to(32 * width)
        layers = [ConvBNReLU(3, cin, 1 if blog else 3, 1 if variant == "cifar" else 2)]
        rows = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
        for (t, c, n), s in zip(rows, strides, strict=True):
            for k in range(n):
                layers.append(InvertedResidual(cin, round_to(c * width), s if k == 0 else 1, t, blog))
                cin = round_to(c * width)
        head = int(1280 * width) if blog else make_divisible(1280 * max(1.0, width))
        layers.append(ConvBNReLU(cin, head, 1))
        self.features = nn.Sequential(*layers)
        if blog:
            self.classifier = nn.Conv2d(head, num_classes, 1)
        else:
            self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))
        self.blog = blog

    def forward(self, x):
        """Logits (N, num_classes)."""
        x = self.features(x).mean((2, 3), keepdim=True)
        return torch.flatten(self.classifier(x), 1) if self.blog else self.classifier(torch.flatten(x, 1))
