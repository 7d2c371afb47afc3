"""icecore."""
