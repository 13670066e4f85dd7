"""What the stage scripts share. Nothing runs at import."""

__version__ = "0.1.0"
