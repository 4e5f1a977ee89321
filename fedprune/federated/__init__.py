"""Who trains, what is merged, and the one loop that tells the story."""
