"""Single tiles of the H&E image: attributions, and the tiles of a latent space."""
