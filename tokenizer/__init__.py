"""Text to token ids and back: byte-level BPE, the rendering of conversations, token shards."""
