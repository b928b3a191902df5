"""ResNets in PyTorch, with torchvision's names: the peer of the benchmarks and the judge of the parity tests."""

from torch import nn


class Block(nn.Module):
    """Two or three convolutions, and a shortcut around them."""

    def __init__(self, channels, inner, stride, bottleneck):
        super().__init__()
        out = inner * (4 if bottleneck else 1)
        convs = [(channels, inner, 1, 1, 0), (inner, inner, 3, stride, 1), (inner, out, 1, 1, 0)]
        if not bottleneck:
            convs = [(channels, inner, 3, stride, 1), (inner, inner, 3, 1, 1)]
        self.count = len(convs)
        for k, sizes in enumerate(convs, 1):
            setattr(self, f"conv{k}", nn.Conv2d(*sizes, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(sizes[1]))
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        """Add what the shortcut makes of x."""
        y = x
        for k in range(1, self.count + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            y = nn.functional.relu(y, inplace=True) if k < self.count else y
        return nn.functional.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class TorchResNet(nn.Module):
    """The network of a `models.resnet.Depth`."""

    def __init__(self, shape, classes=10, width=1.0):
        super().__init__()
        self.shape, channels = shape, round(shape.channels * width)
        stem = (7, 2, 3) if shape.large else (3, 1, 1)
        self.conv1, self.bn1 = nn.Conv2d(3, channels, *stem, bias=False), nn.BatchNorm2d(channels)
        for stage, count in enumerate(shape.blocks):
            inner, blocks = round(shape.channels * 2**stage * width), []
            for k in range(count):
                blocks.append(Block(channels, inner, 2 if stage and not k else 1, shape.bottleneck))
                channels = inner * (4 if shape.bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        """(N, 3, H, W) -> logits."""
        shape = self.shape
        x = nn.functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = nn.functional.max_pool2d(x, 3, 2, 1) if shape.large else x
        for stage in range(len(shape.blocks)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean(dim=(2, 3)))
