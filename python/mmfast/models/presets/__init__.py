"""Shapes of decoders, one YAML file each, read by `mmfast.models.DecoderConfig`."""
