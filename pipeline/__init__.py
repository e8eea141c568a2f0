"""What every stage shares: recipe, artifact, storage, progress, errors. Imports nothing else of ours."""
