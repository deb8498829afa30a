"""Pictures of scores: models against each other, genes, and what chance gives."""
