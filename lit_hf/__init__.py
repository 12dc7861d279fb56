"""lit-hf: a Lightning-based modular trainer for the Hugging Face ecosystem."""

__version__ = "0.1.0"
