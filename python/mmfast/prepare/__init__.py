"""The job that runs any recipe over raw media with any number of processes."""
