"""Complete, commented example configs, shipped with the package: ``icecore demo`` runs ``demo.toml``."""
