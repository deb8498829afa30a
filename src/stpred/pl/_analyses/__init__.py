"""Pictures of analyses: metagenes, differential expression, composition by distance, errors by uncertainty."""
