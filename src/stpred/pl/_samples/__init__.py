"""Pictures of analyses of whole samples."""
