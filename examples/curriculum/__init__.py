"""The parts of `train_tier.py`: text, models, training, and a worker that follows growth."""
