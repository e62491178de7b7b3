"""One folder per system: raw data to documents, prompts, vocabulary, grammar and presets.

Found by name through `mmfast.registry`; nothing outside this folder imports a recipe.
"""
