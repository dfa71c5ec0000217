"""One YAML file, checked. Empty, so that bad input is answered before torch is imported."""
