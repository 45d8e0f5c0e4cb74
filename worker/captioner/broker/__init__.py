"""How messages travel: what takes them from Redis or a file, and what is refused on the way."""
