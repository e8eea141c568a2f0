"""Reinforcement learning: questions, rewards of sampled answers, advantages."""
