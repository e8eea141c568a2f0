"""Inference: the network, sampling, tools. torch and transformers, never deepspeed."""
