"""Training data: windows of token shards, packed conversations."""
