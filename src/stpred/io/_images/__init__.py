"""Opening image files of any vendor."""
