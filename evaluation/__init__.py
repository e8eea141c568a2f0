"""What a model is asked, and what counts as right."""
