"""Building blocks of the families: training hooks, networks, attention, layers for cells."""
