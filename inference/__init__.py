"""A model that answers: network, sampling, tools. torch and transformers, never deepspeed."""
