"""XFuse: a generative model of expression and image (Bergenstrahle et al. 2022)."""
