r"""Train the nucleus network that comes with stpred, and say how well it does on colours that it has not seen.

    python scripts/train_nuclei.py ../shared/data/nuclei --leave-out HE_pink --steps 3500  # tests on that group
    python scripts/train_nuclei.py ../shared/data/nuclei --leave-out purple --steps 3500
    python scripts/train_nuclei.py ../shared/data/nuclei --final --steps 3000 \
        --start nuclei-training/without-HE_pink.safetensors

The last, of all fields, makes the weights of the package; each pink field is left out of such a run in turn by its
name, with 600 steps.

The folder holds the 107 stained fields of stage 1 of the 2018 Data Science Bowl (CC0) as ``<id>_image.png`` and
``<id>_label.png``. No file states a resolution: a field counts as 0.5 um per pixel if its median nucleus is nearer to
160 px than to 640, else as 0.25. Groups are ``HE_pink`` (4 fields), ``purple`` (103) and, within purple, ``light`` and
``dark`` grounds. Synthetic tissue of stpred itself is added to every training set.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred.nuclei import _levels, _network

WORK_MPP = 0.5
CROP_PX, BATCH, STEPS, SEED = 128, 8, 2000, 0
LEARNING_RATE, WEIGHT_DECAY, EMA = 2e-3, 1e-2, 0.995
OFFSET_PX = _network.OFFSET_PX
SYNTHETIC_SHARE = 0.15
LOG_ZOOM = (-0.4, 0.65)
PINK_SHARE = 0.12
GROUPS = ("HE_pink", "purple", "light", "dark")


@dataclass
class Field:
    """An annotated field, and what is learned of it at its own resolution."""

    name: str
    groups: tuple[str, ...]
    mpp: float
    rgb: NDArray[np.uint8]
    labels: NDArray[np.int32]
    levels: tuple[Tensor, ...] = ()
    ground: Tensor | None = None

    def prepare(self) -> None:
        """Store colours and targets as (8, h, w), full and halved: RGB, foreground, depth, offset x, y, valid."""
        planes = np.concatenate(
            [np.moveaxis(self.rgb, -1, 0), targets(self.labels), np.ones((1, *self.labels.shape))]
        ).astype(np.float32)
        full = torch.from_numpy(planes)
        half = nn.functional.avg_pool2d(full[None], 2)[0]
        half[5:7] /= 2
        self.levels, self.ground = (full, half), full[:3].mean(dim=(1, 2))[:, None, None]


def targets(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return foreground, depth, and x and y of the way to the middle in pixels, (4, h, w).

    Depth is d / (d + r): d the distance to the border of the own nucleus, r that to its middle. So it has one summit in
    any nucleus, however long.
    """
    from scipy import ndimage

    out = np.zeros((4, *labels.shape), np.float32)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        mask = np.pad(labels[box] == number, 1)
        depth = (ndimage.distance_transform_edt(mask) - 0.5).clip(0)
        y, x = np.nonzero(mask)
        inner = depth[y, x] >= min(depth.max(), max(1.0, 0.5 * depth.max()))
        best = np.argmin(np.hypot(y - y.mean(), x - x.mean()) + 1e6 * ~inner)
        dy, dx = y[best] - y, x[best] - x
        at = (y - 1 + box[0].start, x - 1 + box[1].start)
        distance = depth[y, x] + 0.5
        out[0][at] = 1
        out[1][at] = distance / (distance + np.hypot(dy, dx))
        out[2][at], out[3][at] = dx, dy
    return out


def load_fields(folder: Path) -> list[Field]:
    """Read all annotated fields."""
    import csv

    from PIL import Image

    with (folder / "index.csv").open() as file:
        pink = {row["image_id"][:12] for row in csv.DictReader(file) if row["colour_group"] == "HE_pink"}

    fields = []
    for path in sorted(folder.glob("*_image.png")):
        name = path.name[:12]
        rgb = np.asarray(Image.open(path).convert("RGB"))
        labels = np.asarray(Image.open(str(path).replace("_image", "_label"))).astype(np.int32)
        area = np.bincount(labels.ravel())[1:]
        median = float(np.median(area[area > 0]))
        mpp = 0.5 if abs(np.log(median / 160)) < abs(np.log(median / 640)) else 0.25
        # Glass is grey in some fields and tinted by the stain's own ground in the others.
        ground = np.median(rgb.reshape(-1, 3)[rgb.mean(axis=2).ravel() >= np.quantile(rgb.mean(axis=2), 0.7)], axis=0)
        tone = "light" if ground[1] > 0.88 * ground[2] else "dark"
        groups = ("HE_pink",) if name in pink else ("purple", tone)
        fields.append(Field(name, groups, mpp, rgb, labels))
    return fields


def synthetic_fields(n: int = 12, *, seed: int = 0) -> list[Field]:
    """Render synthetic tissue with the outlines of its nuclei."""
    from skimage.draw import polygon

    import stpred as st

    fields = []
    for k in range(n):
        tissue = st.datasets.make_tissue(size_um=(320, 320), mpp=0.25, seed=seed + k, donor=k, n_genes=1)
        labels = np.zeros(tissue.image.shape[:2], np.int32)
        for number, nucleus in enumerate(tissue.nuclei, 1):
            xy = np.asarray(nucleus.exterior.coords) / tissue.mpp - 0.5
            labels[polygon(xy[:, 1], xy[:, 0], labels.shape)] = number
        fields.append(Field(f"synthetic{k}", ("synthetic",), tissue.mpp, tissue.image, labels))
    return fields


# Augmentation ---------------------------------------------------------------------------------------------------------


def crop(field: Field, rng: np.random.Generator) -> Tensor:
    """Return (8, CROP_PX, CROP_PX) of a field, turned, mirrored, and scaled to 0.25 to 0.7 um per pixel."""
    shape = field.labels.shape
    zoom = field.mpp / WORK_MPP * np.exp(rng.uniform(*LOG_ZOOM))  # of field pixels to network pixels
    stretch = np.exp(rng.normal(0, 0.06))
    angle = rng.integers(4) * np.pi / 2 + (rng.random() < 0.5) * rng.uniform(-np.pi / 4, np.pi / 4)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forth = turn @ np.diag([stretch, 1 / stretch]) @ np.diag([rng.choice([-1, 1]), 1]) * zoom  # field to network px
    back = np.linalg.inv(forth)
    half = np.abs(back) @ np.full(2, CROP_PX / 2)
    size = np.array(shape[::-1], float)
    low, high = np.minimum(half, size / 2), np.maximum(size - half, size / 2)
    center = rng.uniform(low * 0.9, size - low * 0.9) if (half * 2 > size).any() else rng.uniform(low, high)
    level = int(zoom < 0.62)
    planes = field.levels[level]
    grid_px = np.arange(CROP_PX) - (CROP_PX - 1) / 2
    x, y = np.meshgrid(grid_px, grid_px)
    at = np.einsum("ij,jhw->hwi", back, np.stack([x, y])) + center
    grid = torch.from_numpy((at / size * 2 - 1).astype(np.float32))
    out = nn.functional.grid_sample(
        planes[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )[0]
    linear = torch.from_numpy(forth.astype(np.float32)) * (2**level)
    out[5:7] = torch.einsum("ij,jhw->ihw", linear, out[5:7])
    out[7] = (out[7] > 0.99).float()
    out[:3] = torch.where(out[7] > 0, out[:3], field.ground)
    return out


_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
_UNMIX = np.linalg.inv(_STAINS).astype(np.float32)


def counterstain(rgb: NDArray[np.float32], inside: NDArray[np.float32], rng: Any) -> NDArray[np.float32]:
    """Return (h, w, 3) with eosin where there may have been none: a pink ground, fibres, patches as dense as red cells.

    Most fields show nuclei alone; without this, all that is dark would be one.
    """
    eosin = rng.uniform((0.03, 0.8, 0.05), (0.22, 1.0, 0.6))
    amount = np.zeros(rgb.shape[:2], np.float32)
    if rng.random() < 0.6:
        amount += rng.uniform(0.05, 0.6) * (1 + rng.uniform(0, 0.6) * _noise(rng, rng.integers(8, 60, 2)))
    if rng.random() < 0.6:
        patch = _noise(rng, rng.integers(2, 12, 2)) - rng.uniform(0.2, 1.2)
        patch = 1 / (1 + np.exp(-np.clip(patch * rng.uniform(4, 25), -60, 60)))
        amount += rng.uniform(0.4, 2.2) * patch * (1 + rng.uniform(0, 0.4) * _noise(rng, rng.integers(10, 60, 2)))
    amount = np.maximum(amount, 0) * (1 - rng.uniform(0.4, 1.0) * inside)
    return rgb * np.exp(-amount[..., None] * eosin.astype(np.float32))


def out_of_focus(
    rgb: NDArray[np.float32], inside: NDArray[np.float32], other: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return (h, w, 3) with nuclei above or below the focus, cytoplasm that takes up haematoxylin, and holes.

    The first two are as blue as nuclei, fainter, without a sharp border, and not annotated; holes have a sharp border
    and are brighter than the ground. `other`: (h, w) where another crop has nuclei, whose shapes are taken.
    """
    from scipy.ndimage import gaussian_filter, zoom

    if not 0.01 < inside.mean() < 0.9:
        return rgb
    density = -np.log(np.maximum(rgb, 1) / 255)
    gap = np.maximum(density[inside > 0.5].mean(axis=0) - density[inside <= 0.5].mean(axis=0), 0.02)
    amount = np.zeros(rgb.shape[:2], np.float32)
    other = zoom(other, rng.uniform(1, 2), order=1)
    if rng.random() < 0.6:
        ghosts = _window(other, rng)
        amount += rng.uniform(0.25, 0.7) * gaussian_filter(ghosts, rng.uniform(1.2, 4.0))
    if rng.random() < 0.6:
        patch = _noise(rng, rng.integers(3, 14, 2)) - rng.uniform(0.0, 1.0)
        patch = 1 / (1 + np.exp(-np.clip(patch * rng.uniform(1.5, 6), -60, 60)))
        amount += rng.uniform(0.15, 0.6) * patch * (1 + rng.uniform(0, 0.5) * _noise(rng, rng.integers(15, 60, 2)))
    tint = gap * np.exp(rng.normal(0, 0.15, 3))
    amount = np.maximum(amount, 0) * (1 - rng.uniform(0.6, 1.0) * inside)
    density = density + amount[..., None] * tint.astype(np.float32)
    if rng.random() < 0.4:
        holes = gaussian_filter(_window(other, rng), rng.uniform(0.5, 1.0)) * (1 - gaussian_filter(inside, 1.0))
        density = density * (1 - rng.uniform(0.7, 1.0) * holes[..., None])
    return (255 * np.exp(-density)).astype(np.float32)


def _window(mask: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    y, x = rng.integers(0, np.array(mask.shape) - CROP_PX + 1)
    return np.roll(mask[y : y + CROP_PX, x : x + CROP_PX], rng.integers(0, CROP_PX, 2), (0, 1))


def _noise(rng: np.random.Generator, cells: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return smooth noise of about unit spread, of so many cells down and across."""
    from PIL import Image

    small = Image.fromarray(rng.standard_normal((int(cells[0]), int(cells[1])), np.float32))
    return np.asarray(small.resize((CROP_PX, CROP_PX), Image.Resampling.BICUBIC))


def recolour(rgb: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return (h, w, 3) in [0, 255] of another stain, scanner and focus."""
    light = np.maximum(rgb, 1) / 255
    if rng.random() < 0.9:
        density = -np.log(light)
        amounts = density @ _UNMIX
        amounts = amounts * np.exp(rng.normal(0, 0.25, 3)).astype(np.float32) + rng.normal(0, 0.04, 3).astype(
            np.float32
        )
        stains = np.maximum(_STAINS + rng.normal(0, 0.10, (3, 3)), 0)
        stains *= np.linalg.norm(_STAINS, axis=1, keepdims=True) / np.linalg.norm(stains, axis=1, keepdims=True)
        light = np.exp(-np.maximum(amounts @ stains.astype(np.float32), -0.1))
    grey = light.mean(axis=2, keepdims=True)
    if rng.random() < 0.7:
        light = grey + (light - grey) * rng.uniform(0.4, 1.7)
    if rng.random() < 0.5:  # hue: a turn about the grey axis
        angle, axis = rng.normal(0, 0.35), np.full(3, 3**-0.5)
        cross = np.cross(np.eye(3), axis)
        turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)
        light = grey + (light - grey) @ turn.astype(np.float32)
    ground = rng.uniform(0.78, 1.08, 3) if rng.random() < 0.5 else np.ones(3)
    light = light * (ground * rng.uniform(0.85, 1.1)).astype(np.float32)
    light = np.clip(light, 0, 1) ** np.exp(rng.normal(0, 0.2))
    light = (light - light.mean()) * rng.uniform(0.7, 1.25) + light.mean()
    return np.clip(light * 255, 0, 255).astype(np.float32)


def degrade(rgb: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the pixels through a worse microscope: blur or a coarser scan, noise, JPEG."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    draw = rng.random()
    if draw < 0.35:
        rgb = gaussian_filter(rgb, (*[rng.uniform(0.3, 1.3)] * 2, 0))
    elif draw < 0.55:
        size = round(CROP_PX / rng.uniform(1.1, 1.6))
        image = Image.fromarray(rgb.astype(np.uint8)).resize((size, size), Image.Resampling.BOX)
        rgb = np.asarray(image.resize((CROP_PX, CROP_PX), Image.Resampling.BICUBIC), np.float32)
    elif draw < 0.7:
        rgb = rgb + rng.uniform(0.3, 1.5) * (rgb - gaussian_filter(rgb, (1, 1, 0)))
    if rng.random() < 0.4:
        rgb = rgb + np.float32(rng.uniform(1, 8)) * rng.standard_normal(rgb.shape, np.float32)
    rgb = np.clip(rgb, 0, 255)
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        Image.fromarray(rgb.astype(np.uint8)).save(buffer, "JPEG", quality=int(rng.integers(35, 92)))
        rgb = np.asarray(Image.open(buffer), np.float32)
    return rgb


def batch_of(real: list[Field], synthetic: list[Field], weight: NDArray[np.float64], share: float, rng: Any) -> Tensor:
    """Draw a batch (BATCH, 8, CROP_PX, CROP_PX)."""
    crops = []
    while len(crops) < BATCH:
        made = rng.random() < share
        field = synthetic[rng.integers(len(synthetic))] if made else real[rng.choice(len(real), p=weight)]
        planes = crop(field, rng)
        if planes[7].mean() < 0.4:
            continue
        rgb = planes[:3].permute(1, 2, 0).numpy()
        if rng.random() < 0.5 and crops:
            rgb = out_of_focus(rgb, planes[3].numpy(), crops[-1][3].numpy(), rng)
        if rng.random() < 0.5:
            rgb = counterstain(rgb, planes[3].numpy(), rng)
        rgb = degrade(recolour(rgb, rng), rng).round().clip(0, 255).astype(np.uint8)
        seen = _levels.normalised(rgb, _levels.measure_levels([rgb]))
        seen = seen * np.float32(np.exp(rng.normal(0, 0.1))) + np.float32(rng.normal(0, 0.08))
        planes[:3] = torch.from_numpy(np.ascontiguousarray(seen)).permute(2, 0, 1)
        crops.append(planes)
    return torch.stack(crops)


# Training -------------------------------------------------------------------------------------------------------------


def loss_of(out: Tensor, batch: Tensor) -> tuple[Tensor, ...]:
    """Return the losses of foreground, depth and offsets."""
    inside, depth, offset, valid = batch[:, 3:4], batch[:, 4:5], batch[:, 5:7] / OFFSET_PX, batch[:, 7:8]
    logit, share = out[:, :1], torch.sigmoid(out[:, :1])
    # Pixels near a border, where nuclei touch above all, weigh more.
    weight = valid * (1 + 2 * inside * (1 - depth).clamp(0, 1) ** 4)
    bce = (nn.functional.binary_cross_entropy_with_logits(logit, inside, reduction="none") * weight).sum()
    dice = 1 - (2 * (share * inside * valid).sum() + 1) / (((share + inside) * valid).sum() + 1)
    near = valid * (1 + 2 * inside)
    smooth = (nn.functional.smooth_l1_loss(out[:, 1:2], depth, beta=0.1, reduction="none") * near).sum()
    way = (nn.functional.smooth_l1_loss(out[:, 2:4], offset, beta=0.25, reduction="none") * valid * inside).sum()
    n = valid.sum().clamp_min(1)
    return bce / n + dice, 2 * smooth / n, way / (2 * (valid * inside).sum().clamp_min(1))


def train(
    real: list[Field], synthetic: list[Field], *, steps: int, share: float, seed: int, out: Path, start: Path | None
) -> Any:
    """Train a network; its weights, averaged over steps, are stored every 200 steps."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    for field in [*real, *synthetic]:
        field.prepare()
    # Fields of many nuclei teach more, but no field is to rule.
    weight = np.array([np.sqrt(len(np.unique(f.labels)) * f.labels.size * f.mpp**2) for f in real])
    weight /= weight.sum()
    pink = np.array(["HE_pink" in f.groups for f in real])
    if pink.any() and not pink.all():  # four fields of a hundred, and what most slides look like
        share_of = {True: PINK_SHARE / weight[pink].sum(), False: (1 - PINK_SHARE) / weight[~pink].sum()}
        weight = weight * [share_of[bool(p)] for p in pink]
    net = _network.NucleusNet(norm=True).to(memory_format=torch.channels_last)
    if start is not None:
        net.load_state_dict(load_file(start), strict=False)
    peak = LEARNING_RATE if start is None else LEARNING_RATE / 2
    mean = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA), use_buffers=True
    )
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    begun, curve, recent = time.process_time(), [], []
    for step in range(1, steps + 1):
        batch = batch_of(real, synthetic, weight, share, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            planes = net(batch[:, :3].contiguous(memory_format=torch.channels_last))
        losses = loss_of(planes.float(), batch)
        optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        mean.update_parameters(net)
        recent.append([float(x.detach()) for x in losses])
        if step % 50 == 0:
            curve.append([step, *np.mean(recent, axis=0).round(5).tolist()])
            recent = []
            print(curve[-1], f"{time.process_time() - begun:.0f} s", flush=True)
        if step % 200 == 0 or step == steps:
            state = {k: v.contiguous() for k, v in mean.module.state_dict().items() if "num_batches" not in k}
            save_file(state, out.with_suffix(".safetensors"))
            out.with_suffix(".curve.json").write_text(json.dumps(curve))
    return mean.module.eval()


# Evaluation -----------------------------------------------------------------------------------------------------------

CENTROID_UM = 3.0
"""How far the middle of a nucleus may be from that of the true one that it is matched to."""


def found_on(field: Field, method: Any) -> NDArray[np.int32]:
    """Return labels, in the field's own pixels, of what :func:`stpred.nuclei.detect` finds on it."""
    import dask.array as da
    import shapely
    from PIL import Image, ImageDraw

    from stpred import nuclei
    from stpred.tiles import Level, Pyramid

    array = da.from_array(np.moveaxis(field.rgb, -1, 0), chunks=(3, 256, 256))
    pyramid = Pyramid([Level(array, np.diag([field.mpp, field.mpp, 1.0]))])
    frame = nuclei.detect(pyramid, method=method, device="cpu")
    canvas = Image.new("I", field.labels.shape[::-1])
    pen = ImageDraw.Draw(canvas)
    for number, polygon in enumerate(frame.geometry, 1):
        pen.polygon([tuple(p) for p in shapely.get_coordinates(polygon.exterior) / field.mpp - 0.5], fill=number)
    return np.asarray(canvas).astype(np.int32)


def matches(true: NDArray[np.int32], found: NDArray[np.int32], *, mpp: float) -> NDArray[np.int64]:
    """Return matched, superfluous and missed nuclei: by an intersection over union above 0.5, and by middle, (2, 3)."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    from stpred._image.labels import means

    n, m = int(true.max()), int(found.max())
    both = np.bincount(true.ravel().astype(np.int64) * (m + 1) + found.ravel(), minlength=(n + 1) * (m + 1))
    both = both.reshape(n + 1, m + 1)
    union = both.sum(1)[:, None] + both.sum(0)[None] - both
    overlapping = int((both[1:, 1:] > 0.5 * union[1:, 1:]).sum())
    middles = [stats[stats[:, 0] > 0, 1:3] for stats in (means(true), means(found))]
    real, predicted = len(middles[0]), len(middles[1])
    distance = cdist(*middles) * mpp
    far = distance > CENTROID_UM
    pairs = linear_sum_assignment(np.where(far, 1e6, distance))
    near = int((~far[pairs]).sum())
    return np.array([[hit, predicted - hit, real - hit] for hit in (overlapping, near)])


def f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return F1 of (..., 3) matched, superfluous and missed."""
    hit, superfluous, missed = np.moveaxis(counts, -1, 0)
    return 2 * hit / np.maximum(2 * hit + superfluous + missed, 1)


def table(fields: list[Field], methods: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Print and return F1 of every method, all nuclei together and as the mean of the fields."""
    scores = {}
    for name, method in methods.items():
        counts = np.array([matches(f.labels, found_on(f, method), mpp=f.mpp) for f in fields])
        pooled, mean = f1(counts.sum(axis=0)), f1(counts).mean(axis=0)
        scores[name] = {
            "f1": round(float(pooled[0]), 3),
            "centroid_f1": round(float(pooled[1]), 3),
            "mean_f1": round(float(mean[0]), 3),
            "mean_centroid_f1": round(float(mean[1]), 3),
            "n_fields": len(fields),
            "n_nuclei": int(sum(len(np.unique(f.labels)) - 1 for f in fields)),
        }
        print(f"{name:10} {scores[name]}", flush=True)
    return scores


def stored(path: Path) -> _network.NucleusNet:
    """Return a network of a run."""
    from safetensors.torch import load_file

    net = _network.NucleusNet(norm=True)
    net.load_state_dict(load_file(path), strict=False)  # how many batches were seen is not stored
    folded = _network.NucleusNet()
    folded.load_state_dict(_network.folded(net.eval()))
    return folded.eval().requires_grad_(requires_grad=False)


def as_method(net: _network.NucleusNet) -> Any:
    """Return a method for :func:`stpred.nuclei.detect` that does with this network what ``"network"`` does."""
    from stpred import nuclei
    from stpred.nuclei import _parting

    area_px = (nuclei.MIN_AREA_UM2 / WORK_MPP**2, 350 / WORK_MPP**2)

    def network(rgb: NDArray[np.uint8], *, mpp: float) -> NDArray[np.int32]:
        seen = _levels.normalised(rgb, _levels.measure_levels([rgb]))
        return _parting.part(_network.planes(net, seen), offset_px=OFFSET_PX, area_px=area_px)

    return network


def export(net: _network.NucleusNet, card: dict[str, Any]) -> None:
    """Write weights and card into the package."""
    from safetensors.torch import save_file

    path = _network.WEIGHTS / "nuclei.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, path)
    path.chmod(0o644)
    card = card | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def card_of(args: argparse.Namespace, scores: dict[str, Any], net: _network.NucleusNet) -> dict[str, Any]:
    """Return what there is to know of the weights, with the scores of the runs that left a group out."""
    runs = {p.name.split(".")[0]: json.loads(p.read_text()) for p in sorted(args.work.glob("without-*.scores.json"))}
    return {
        "what": "U-Net that parts nuclei on H&E at 0.5 um per pixel: foreground, depth, way to the middle",
        "parameters": sum(p.numel() for p in net.parameters()),
        "mpp": WORK_MPP,
        "trained_on": "107 fields of stage 1 of the 2018 Data Science Bowl (Caicedo et al. 2019, Nat. Methods 16:1247; "
        "CC0), and synthetic tissue of stpred",
        "made_by": f"scripts/train_nuclei.py --final --steps {args.steps} --seed {args.seed}"
        + (f" --start {args.start.name}" if args.start else ""),
        "left_out": runs,
        "trained_on_scores": scores,
        "license": "BSD-3-Clause",
    }


def draw_curves(work: Path, path: Path) -> None:
    """Draw the losses of all runs in a folder, and store them beside as csv."""
    import matplotlib

    matplotlib.use("Agg")
    import pandas as pd
    from matplotlib import pyplot as plt

    files = sorted(work.glob("*.curve.json"))
    curves = pd.concat(
        pd.DataFrame(json.loads(f.read_text()), columns=["step", "foreground", "depth", "offset"]).assign(
            run=f.name.split(".")[0]
        )
        for f in files
    )
    curves.to_csv(path.with_suffix(".csv"), index=False)
    fig, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    for ax, name in zip(axes, ("foreground", "depth", "offset"), strict=True):
        for run, part in curves.groupby("run"):
            ax.plot(part["step"], part[name], label=run, lw=1)
        ax.set(title=name, xlabel="step", yscale="log")
    axes[0].set_ylabel("training loss")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=7)
    fig.savefig(path, dpi=130)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--leave-out", help="a group, or the name of one field")
    parser.add_argument("--final", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--start", type=Path, help="weights of an earlier run to go on from, at half the learning rate")
    parser.add_argument("--test-only", action="store_true", help="tests the weights that an earlier run left")
    parser.add_argument("--work", type=Path, default=Path("nuclei-training"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    fields = load_fields(args.folder)
    name = "final" if args.final else f"without-{args.leave_out}"
    left = [f for f in fields if args.leave_out in (*f.groups, f.name)]
    if args.leave_out and not left:
        parser.error(f"no field or group is called {args.leave_out!r}; groups are {', '.join(GROUPS)}")
    real = [f for f in fields if args.final or args.leave_out not in (*f.groups, f.name)]
    share = 0.6 if len(real) < 10 else SYNTHETIC_SHARE
    if not args.test_only:
        train(
            real,
            synthetic_fields(seed=100),
            steps=args.steps,
            share=share,
            seed=args.seed,
            out=args.work / name,
            start=args.start,
        )
    net = stored(args.work / f"{name}.safetensors")
    methods = {"builtin": "builtin", "network": as_method(net)}
    tested = {args.leave_out: left} if args.leave_out else {}
    tested |= {"synthetic": synthetic_fields(3, seed=900)}
    if args.final:
        tested |= {group: [f for f in fields if group in f.groups] for group in GROUPS[:2]}
    scores = {}
    for group, chosen in tested.items():
        print(f"{group}{' (trained on)' * (args.final and group != 'synthetic')}: {len(chosen)} fields")
        scores[group] = table(chosen, methods)
    (args.work / f"{name}.scores.json").write_text(json.dumps(scores, indent=2))
    if args.final:
        export(net, card_of(args, scores, net))
        draw_curves(args.work, Path(__file__).parents[1] / "docs/images/nuclei_training.png")


if __name__ == "__main__":
    main()
