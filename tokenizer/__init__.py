"""Text to ids and back: byte-level BPE, conversations, token shards."""
