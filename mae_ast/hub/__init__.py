"""Load models from anywhere and export them: files, URLs, the Hugging Face hub."""
