"""What a training run needs beyond the layers: data, optimizers, schedules, checkpoints, the loop."""
