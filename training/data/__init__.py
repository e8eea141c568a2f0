"""What a stage learns from: windows of token shards, packed conversations."""
