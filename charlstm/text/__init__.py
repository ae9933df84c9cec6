"""Text to ids: reading, decoding, vocabularies and corpora. No torch."""
