"""Presets of `mmfast tokenizer train-image`: YAML files for `FsqTrainingConfig`."""
