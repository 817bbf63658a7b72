"""facexlib's parsing net in PyTorch, by its keys, from what its paper and its file show."""

import torch
from torch import nn
from torch.nn import functional


def conv(inputs, outputs, size, strides=1):
    return nn.Conv2d(inputs, outputs, size, strides, size // 2, bias=False)


class Unit(nn.Module):
    def __init__(self, inputs, outputs, size):
        super().__init__()
        self.conv, self.bn = conv(inputs, outputs, size), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Block(nn.Module):
    def __init__(self, inputs, outputs, strides):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, strides), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.downsample = None
        if strides > 1:
            norm = nn.BatchNorm2d(outputs)
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, strides), norm)

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class Resnet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 7, 2), nn.BatchNorm2d(width)
        inputs = width
        for i in range(4):
            outputs = width * 2**i
            blocks = Block(inputs, outputs, 1 + (i > 0)), Block(outputs, outputs, 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, x):
        x = functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        second = self.layer2(self.layer1(x))
        third = self.layer3(second)
        return second, third, self.layer4(third)


class Refinement(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = Unit(inputs, outputs, 3)
        self.conv_atten, self.bn_atten = conv(outputs, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = self.conv(x)
        return x * self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))).sigmoid()


class Context(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.resnet, inner = Resnet(width), 2 * width
        self.arm16, self.arm32 = Refinement(4 * width, inner), Refinement(8 * width, inner)
        self.conv_head32, self.conv_head16 = Unit(inner, inner, 3), Unit(inner, inner, 3)
        self.conv_avg = Unit(8 * width, inner, 1)

    def forward(self, x):
        second, third, last = self.resnet(x)
        mean = self.conv_avg(last.mean((2, 3), keepdim=True))
        up = functional.interpolate(self.arm32(last) + mean, scale_factor=2, mode="nearest")
        up = self.arm16(third) + self.conv_head32(up)
        up = functional.interpolate(up, scale_factor=2, mode="nearest")
        return second, self.conv_head16(up)


class Fusion(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.convblk = Unit(features, features, 1)
        self.conv1 = conv(features, features // 4, 1)
        self.conv2 = conv(features // 4, features, 1)

    def forward(self, one, other):
        x = self.convblk(torch.cat([one, other], 1))
        weight = self.conv2(self.conv1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x * weight + x


class Head(nn.Module):
    def __init__(self, inputs, inner, labels):
        super().__init__()
        self.conv, self.conv_out = Unit(inputs, inner, 3), conv(inner, labels, 1)

    def forward(self, x):
        return self.conv_out(self.conv(x))


class TorchBiSeNet(nn.Module):
    """``width`` 64 and 19 labels are the published net's."""

    def __init__(self, width=64, labels=19):
        super().__init__()
        self.cp, self.ffm = Context(width), Fusion(4 * width)
        self.conv_out = Head(4 * width, 4 * width, labels)
        self.conv_out16 = Head(2 * width, width, labels)
        self.conv_out32 = Head(2 * width, width, labels)

    def forward(self, x):
        out = self.conv_out(self.ffm(*self.cp(x)))
        return functional.interpolate(out, x.shape[2:], mode="bilinear", align_corners=True)
