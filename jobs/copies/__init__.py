"""MinHash signatures, and clusters of documents whose signatures are alike."""
