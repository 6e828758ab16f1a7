"""Training on several processes: what they tell each other, and how it is written down."""
