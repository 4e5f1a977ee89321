"""Files on disk: checkpoints and tickets (safetensors, no pickle), and masks that are spilled from memory."""
