"""Reading count matrices, columns and cell tables."""
