"""Writers of results for other programs: QuPath, Seurat and scanpy, Fiji, vitessce."""
