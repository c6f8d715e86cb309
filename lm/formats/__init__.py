"""Formats of files: Hugging Face's folders of models, and vocabularies."""
