"""One room per feature. Features never import each other."""
