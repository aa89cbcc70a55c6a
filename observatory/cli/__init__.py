"""The door for hands."""
