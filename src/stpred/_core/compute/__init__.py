"""How work is run: compiled kernels, and items made ahead of their use."""
