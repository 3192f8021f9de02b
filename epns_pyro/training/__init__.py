"""Training: the settings and folder of a run, the trainer, schedules, validation, checkpoints and presets."""
