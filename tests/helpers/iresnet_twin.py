"""IResNet in PyTorch, with arcface_torch's keys, and random weights and statistics for it."""

import torch
from torch import nn


def conv(in_features, features, side=3, stride=1):
    return nn.Conv2d(in_features, features, side, stride, side // 2, bias=False)


class Block(nn.Module):
    def __init__(self, in_features, features, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_features)
        self.conv1 = conv(in_features, features)
        self.bn2 = nn.BatchNorm2d(features)
        self.prelu = nn.PReLU(features)
        self.conv2 = conv(features, features, stride=stride)
        self.bn3 = nn.BatchNorm2d(features)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                conv(in_features, features, 1, stride), nn.BatchNorm2d(features)
            )

    def forward(self, x):
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        skip = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv2(y)) + skip


class TorchIResNet(nn.Module):
    def __init__(self, layers, widths=(64, 128, 256, 512), input_size=112, embedding_dim=512):
        super().__init__()
        self.conv1 = conv(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        before, side = widths[0], input_size
        for i, (depth, width) in enumerate(zip(layers, widths, strict=True), 1):
            blocks = [Block(before if j == 0 else width, width, 1 + (j == 0)) for j in range(depth)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
            before, side = width, -(-side // 2)
        self.stages = len(layers)
        self.bn2 = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before * side**2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)

    def hidden_states(self, x):
        states = [self.prelu(self.bn1(self.conv1(x)))]
        for i in range(self.stages):
            states.append(getattr(self, f"layer{i + 1}")(states[-1]))
        return states

    def forward(self, x):
        x = self.bn2(self.hidden_states(x)[-1])
        return self.features(self.fc(torch.flatten(x, 1)))


def randomise_statistics(model, seed=1):
    """Running means and variances other than 0 and 1, so that omitting them shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model
