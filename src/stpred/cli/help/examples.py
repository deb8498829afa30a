"""Examples at the end of each ``--help``: what for, and the command as it is typed."""

from __future__ import annotations

import re

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "": [
        ("Is the installation all right? See it work.", "stpred doctor && stpred demo"),
        ("Predict one slide with the bundled model.", "stpred predict slide.svs -o out.zarr"),
        ("Train a model on your own measured slides.", "stpred train slides.csv -o mymodel"),
    ],
    "demo": [
        ("Run it, with results in the folder demo.", "stpred demo"),
        ("Elsewhere, in the place of an earlier one.", "stpred demo -o /tmp/demo --overwrite"),
    ],
    "doctor": [
        ("Look at everything.", "stpred doctor"),
        ("Also at a folder of features.", "stpred doctor --cache features"),
        ("For a report of a problem, or a program.", "stpred doctor --json > doctor.json"),
    ],
    "models": [
        ("What is there?", "stpred models"),
    ],
    "predict": [
        ("An H&E image, on a grid over its tissue.", "stpred predict slide.svs -o out.zarr"),
        ("A Visium slide on its spots, with an own model.", "stpred predict p1/outs -o p1.zarr --model mymodel --qc"),
        (
            "A Xenium slide on its cells.",
            "stpred predict xenium/outs -o cells.zarr --cells --image he.ome.tif --alignment he_imagealignment.csv",
        ),
        ("Many slides, in four processes.", "stpred predict slides.csv -o predicted --workers 4 --previews"),
    ],
    "export": [
        ("Detections for QuPath, with three genes.", "stpred export out.zarr -o out.geojson --genes EPCAM,KRT8,CD74"),
        ("Counts for Seurat, with positions.", "stpred export out.zarr -o out.h5 --counts --positions out.csv"),
        ("The map of a store that stpred predict --map wrote, for Fiji.", "stpred export fine.zarr -o map.ome.tif"),
    ],
    "features": [
        ("For a ridge regression that is trained later.", "stpred features slides.csv -o features"),
        ("For one of a network's features, on a GPU.",
         "stpred features slides.csv -o features --encoder timm/resnet50.tv_in1k --devices 0"),
        ("For predictions of a trained model.", "stpred features slides.csv -o features --models mymodel"),
    ],
    "status": [
        ("How far is it, and what failed?", "stpred status predicted"),
        ("Go on after an interruption, without progress.", "stpred -q predict slides.csv -o predicted"),
    ],
    "collect": [
        ("Pseudo-bulk per slide, with an overview page beside it.", "stpred collect predicted -o cohort.h5ad"),
        ("All locations of all slides, two genes.", "stpred collect predicted --tables all.zarr --genes EPCAM,CD74"),
        ("The overview page alone.", "stpred collect predicted --page overview.html"),
    ],
    "train": [
        ("On slides and donors of a csv.", "stpred train slides.csv -o mymodel --genes rmax:1000"),
        ("MISO, five members, on a network's features.",
         "stpred train slides.csv -o miso --model miso --ensemble 5 --encoder timm/resnet50.tv_in1k"),
        ("Single cells, from two Visium slides.",
         "stpred train a=p1/outs b=p2/outs -o cells --model scellst --groups a=donor1,b=donor2"),
        ("Maps finer than spots.", "stpred train slides.csv -o fine --model student"),
    ],
    "finetune": [
        ("Go on from the bundled model on own slides.", "stpred finetune default own.csv -o ours"),
        ("Of a network, its last layer alone.", "stpred finetune mynet own.csv -o head --trains head --epochs 5"),
    ],
    "evaluate": [
        ("Baselines and ridge, one donor left out at a time.", "stpred evaluate slides.csv --report report.html"),
        ("MISO against ridge, all scores in a csv.",
         "stpred evaluate slides.csv --models ridge,miso --genes rmax:500 -o scores.csv"),
        ("Two slides of one donor; the scores are marked as such.",
         "stpred evaluate p1/outs p2/outs --groups slide --models colour,ridge"),
    ],
}  # fmt: skip
"""By command; of the application under ""."""

WIDTH = 78

EXIT = """Exit status:
  0  done
  1  unexpected error; doctor: something is broken
  2  input or options that cannot be used, or slides that failed
  3  slides failed, and --skip-errors says that this is no error
  130  interrupted; the same command goes on (predict, features)"""
"""What the statuses of all commands mean."""


def epilog(command: str) -> str:
    """Return the end of a command's help."""
    lines = ["Examples:"]
    for what, line in EXAMPLES[command]:
        lines += [f"  {what}", *_broken(line)]
    return "\n".join(lines if command else [*lines, "", EXIT])


def _broken(command: str, *, indent: str = "    ") -> list[str]:
    """Return a command on lines that are not too long, as a shell takes them."""
    lines, line = [], indent
    for part in re.split(r" (?=-)", command):  # an option stays with its value
        if len(line) + len(part) + 3 > WIDTH and line.strip():
            lines.append(f"{line.rstrip()} \\")
            line = indent * 2
        line += f"{part} "
    return [*lines, line.rstrip()]
