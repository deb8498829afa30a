"""The parts of XFuse: networks, likelihoods, metagenes and their bookkeeping, posterior read-out."""
