"""Many slides in one run on Dask, which can be interrupted at any time and says of each slide what became of it."""
