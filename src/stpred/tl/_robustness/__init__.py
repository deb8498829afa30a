"""How predictions change when slides, spots or tiles are changed."""
