"""Copies: MinHash signatures, and clusters of documents that share them."""
