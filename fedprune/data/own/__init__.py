"""Data of a user's own that is no folder of images: tables, torch data sets, Hugging Face data sets."""
