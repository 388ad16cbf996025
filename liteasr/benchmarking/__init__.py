"""Dense and lite encoders side by side: what is timed, how, and what is shown of it."""
