"""Distant supervision (KG2Instructions): a graph in SQLite, its names in texts, and the facts that texts may state."""
