"""Neural networks by name: timm's, those of lazyslide-models, weights of installed packages, and their layers."""
