"""Reinforcement: samples of the model, their rewards, and what to learn from them."""
