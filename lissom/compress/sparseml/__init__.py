"""Recipes of SparseML and llm-compressor as recipes of lissom."""

from lissom.compress.sparseml.recipe import Entry, Imported, import_recipe, is_foreign, read_text

__all__ = ["Entry", "Imported", "import_recipe", "is_foreign", "read_text"]
