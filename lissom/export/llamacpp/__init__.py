"""A language model for llama.cpp, and whatever else reads GGUF."""
