r"""How many images a second the loaders hand out, and where the time of a folder's images goes.

    python -m benchmarks.data --roots FOLDER … --enlarged FOLDER --dali SITE --out benchmarks/results/speed_data.jsonl

For each folder, some of its images in random crops of 224² (`--sizes`), on one core (`--enlarged`: enlarged to as many
pixels as a photograph of ImageNet has in the mean and saved at quality 90, which leaves them smoother than those are):

- `decode`: from the file to RGB pixels.
- `decode, crop, mirror`: to what kdkit's workers hand over, uint8.
- `decode, crop, mirror, normalise`: to fp32.

and through the loaders, batch 64, with 0, 1 and 2 workers:

- `to a device`: what the host has to do where an accelerator trains. kdkit sends uint8 and normalises there.
- `to the CPU`: all of it, fp32.

`resident` is an epoch of CIFAR's shape out of memory, random crops and flips on the device where they are trained on,
the CPU or with `--device cuda` the GPU, to which `to a device` then sends, too.

`torchvision` is the usual pipeline: `DataLoader`, `RandomResizedCrop` (for CIFAR `RandomCrop` with padding),
`RandomHorizontalFlip`, `ToTensor`, `Normalize`, image by image in the workers. Before anything is timed, both have to
give the same images under the same draws, but for two levels of a pixel: an image is resized along one side and then
the other, and either rounds. Times are those of one image.

SITE is a folder that `pip install --target SITE nvidia-dali-cuda130` made. DALI decodes, crops and resizes on the CPU,
with as many threads as there are workers, and with none beside it where there is no worker; by default only the part of
a JPEG that its crop needs, or *whole*. Its draws are its own; whole images were found to be alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader
from torchvision.transforms import functional

from benchmarks import timing
from benchmarks.dali import Dali
from kdkit import draws
from kdkit.data.data_facts import IMAGENET_MEAN, IMAGENET_STD
from kdkit.data.device_loader import DeviceLoader
from kdkit.data.files import find_unlabelled
from kdkit.data.order import Order
from kdkit.data.photos import ResizedCrop
from kdkit.data.pixels import read_rgb
from kdkit.data.views import CropFlip, Normalise
from kdkit.data.worker_loader import ImageFiles, WorkerLoader
from kdkit.registry import KdkitError

BATCH = 64
MOVED = torch.device("meta")
"""Stands for an accelerator that takes no time."""

CIFAR = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


class Plain(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets give them: opened, then transformed."""

    def __init__(self, items: Sequence[Any], opened: Callable[[Any], Any], steps: Sequence[Any]) -> None:
        self.items, self.opened, self.transform = items, opened, transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.opened(self.items[index])), 0


def crops(size: int, *last: Any) -> list[Any]:
    """Random crops of photographs, the usual way."""
    return [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *last]


def floats(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    """From an image to what a net reads."""
    return [transforms.ToTensor(), transforms.Normalize(mean, std)]


def read(loader: Iterable[Sequence[Tensor]], device: torch.device | None = None) -> None:
    """A pass over all batches."""
    for images, *_ in loader:
        images.to(device or images.device)


def theirs(items: Dataset[Any], workers: int) -> Callable[[torch.device], None]:
    """A pass over the usual loader, to a device."""
    loader = DataLoader(items, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda device: read(loader, device)


def same(one: Tensor, other: Tensor, what: str) -> None:
    """Raise `KdkitError` where uint8 images are more than two roundings apart."""
    apart = int((one.int() - other.int()).abs().max())
    if apart > 2:
        raise KdkitError(f"{what}: torchvision makes other images, {apart} levels away; not timed")


def usual_view(image: Image.Image, crop: ResizedCrop, numbers: Iterator[float]) -> Tensor:
    """What torchvision makes of an image under kdkit's draws."""
    top, left, height, width = crop.draw(image.height, image.width, numbers)
    view = functional.resized_crop(image, top, left, height, width, [crop.size, crop.size])
    return functional.pil_to_tensor(functional.hflip(view) if next(numbers) < 0.5 else view)


def choose(root: Path, count: int) -> list[str]:
    """Some of a folder's images."""
    found = find_unlabelled(root)
    return found.paths(torch.randperm(len(found.names), generator=torch.Generator().manual_seed(0))[:count])


def enlarge(paths: Sequence[str], folder: Path) -> Path:
    """The images at 500 × 375 pixels, or as many in their own shape."""
    folder.mkdir()
    for k, path in enumerate(paths):
        image = default_loader(path)
        factor = (500 * 375 / (image.width * image.height)) ** 0.5
        size = round(factor * image.width), round(factor * image.height)
        image.resize(size, Image.Resampling.LANCZOS).save(folder / f"{k:05d}.jpg", quality=90)
    return folder


def folder(
    root: Path, size: int, count: int, workers: Sequence[int], rounds: int, rows: timing.Rows, dali: Dali | None
) -> None:
    """The rows of one folder of images."""
    moved = MOVED if rows.device.type == "cpu" else rows.device
    paths, name = choose(root, count), f"{root.name}, {size}²"
    count = len(paths)
    transform = ResizedCrop(size)
    files, normalise = ImageFiles(paths, transform, seed=0), Normalise(*IMAGENET.values())
    few, to_uint8 = range(min(count, BATCH)), transforms.PILToTensor()
    usual = Plain(paths, default_loader, crops(size, *floats(*IMAGENET.values())))
    unfinished = Plain(paths, default_loader, crops(size, to_uint8))
    for k in few:
        same(files[0, k][0], usual_view(default_loader(paths[k]), transform, draws.uniforms(0, "view", 0, k)), name)
    alike = dali.compare(paths[: len(few)], size) if dali else {}

    def times(what: str, calls: dict[str, Callable[[], object]], images: int, workers: int | None = None) -> None:
        turns = timing.in_turns(calls, rounds)
        summary = timing.summary({who: [t / images for t in mine] for who, mine in turns.items()})
        for who, figures in summary.items():
            told = {"apart": alike} if who.startswith("DALI") else {}
            rows.add(shape=name, what=what, workers=workers, batch=BATCH, contender=who, **figures, **told)

    def beside(
        images: Sequence[str], workers: int, floats: bool, device: torch.device
    ) -> dict[str, Callable[[], object]]:
        found = dali.passes(images, size, len(few), workers, floats) if dali else {}
        return {who: lambda each=each: each(device) for who, each in found.items()}

    parts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "decode": (lambda: [read_rgb(paths[k]) for k in few], lambda: [default_loader(paths[k]) for k in few]),
        "decode, crop, mirror": (lambda: [files[0, k] for k in few], lambda: [unfinished[k] for k in few]),
        "decode, crop, mirror, normalise": (
            lambda: normalise(torch.stack([files[0, k][0] for k in few])),
            lambda: torch.stack([usual[k][0] for k in few]),
        ),
    }
    for what, (ours, other) in parts.items():
        third = beside(paths[: len(few)], 0, "normalise" in what, torch.device("cpu")) if "crop" in what else {}
        times(what, {"kdkit": ours, "torchvision": other, **third}, len(few))
    for n in workers:
        other_loader = theirs(usual, n)
        for what, device in (("to a device", moved), ("to the CPU", torch.device("cpu"))):
            order = Order(count, BATCH, seed=0)
            loader = WorkerLoader(
                files, torch.zeros(count, dtype=torch.int64), order, **IMAGENET, num_workers=n, device=device
            )
            calls = {
                "kdkit": lambda loader=loader: read(loader),
                "torchvision": lambda each=other_loader, device=device: each(device),
                **beside(paths, n, what == "to the CPU", device),
            }
            times(what, calls, count, n)


def resident(count: int, workers: Sequence[int], rounds: int, rows: timing.Rows) -> None:
    """The rows of a set that is small enough to live on the device."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *floats(*CIFAR.values())]
    array = images.permute(0, 2, 3, 1).contiguous().numpy()
    plain = Plain(array, Image.fromarray, floats(*CIFAR.values()))
    labels = torch.zeros(count, dtype=torch.int64)
    still = next(iter(DeviceLoader(images, labels, Order(count, BATCH), **CIFAR, device=rows.device)))[0].cpu()
    if not torch.equal(still, torch.stack([plain[k][0] for k in range(len(still))])):
        raise KdkitError("resident: torchvision makes other images; not timed")
    order, views = Order(count, BATCH, seed=0), CropFlip(0, 4, True)
    loader = DeviceLoader(images, labels, order, **CIFAR, views=views, device=rows.device)
    usual = Plain(array, Image.fromarray, steps)
    passes = {f"torchvision, {n} workers": theirs(usual, n) for n in workers}
    others = {name: lambda each=each: each(rows.device) for name, each in passes.items()}
    turns = timing.in_turns({"kdkit": lambda: read(loader), **others}, rounds)
    for who, figures in timing.summary({who: [t / count for t in mine] for who, mine in turns.items()}).items():
        rows.add(shape="CIFAR, 32²", what="resident", batch=BATCH, contender=who, **figures)


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = timing.arguments(__doc__, rounds=7)
    parser.add_argument("--roots", nargs="*", type=Path, default=[], metavar="FOLDER", help="folders of images")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224], help="of the crops, for each folder its own")
    parser.add_argument("--enlarged", type=Path, metavar="FOLDER", help="of images, in crops of 224² of larger files")
    parser.add_argument("--dali", type=Path, metavar="SITE", help="folder that nvidia-dali is installed in")
    parser.add_argument("--count", type=int, default=512, help="images in a turn (default: 512)")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    args = timing.begin(parser, words)
    if len(args.sizes) not in (1, len(args.roots)):
        parser.error(f"--sizes takes one size, or one for each of the {len(args.roots)} folders, got {len(args.sizes)}")
    if args.quick:
        args.count, args.workers = 8, [0, 1]
    elif args.dali and args.count % BATCH:
        parser.error(f"--count must be whole batches of {BATCH} beside DALI, got {args.count}")
    sizes = args.sizes if len(args.sizes) > 1 else args.sizes * len(args.roots)
    rows, dali = timing.Rows(args, "data"), Dali(args.dali) if args.dali else None
    resident(args.count if args.quick else 5 * args.count, args.workers, args.rounds, rows)
    with tempfile.TemporaryDirectory() as place:
        shapes = list(zip(args.roots, sizes, strict=True))
        if args.enlarged is not None:
            name = f"{args.enlarged.name} enlarged to 500 × 375"
            shapes.append((enlarge(choose(args.enlarged, args.count), Path(place) / name), 224))
        for root, size in shapes:
            folder(root, size, args.count, args.workers, args.rounds, rows, dali)


if __name__ == "__main__":
    main()
