"""Training configurations, one YAML file each, read by `mmfast.train.TrainConfig`."""
