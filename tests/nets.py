"""Small real nets and data that the tests share."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Net(nn.Module):
    """Two convolutional stages and a classifier: (B, 3, 8, 8) → (B, classes)."""

    stages = {"stage1": "act1", "stage2": "act2"}  # noqa: RUF012

    def __init__(self, width=8, classes=5, dropout=0.0):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.fc(self.drop(self.pool(x).flatten(1)))


def net(width=8, seed=0, **options):
    torch.manual_seed(seed)
    return Net(width, **options)


class Blobs(Dataset):
    """Noise around one picture for each class: learnable, made in a millisecond."""

    def __init__(self, n=64, classes=5, indexed=True):
        made = torch.Generator().manual_seed(7)
        self.y = torch.arange(n) % classes
        self.x = torch.randn(classes, 3, 8, 8, generator=made)[self.y] + 0.5 * torch.randn(n, 3, 8, 8, generator=made)
        self.indexed = indexed

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return (self.x[i], self.y[i], i) if self.indexed else (self.x[i], self.y[i])


def loader(batch_size=16, **options):
    return DataLoader(Blobs(**options), batch_size=batch_size)
