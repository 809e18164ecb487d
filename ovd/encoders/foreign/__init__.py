"""Reading what others wrote: CLIPs in the layout of transformers, and tokenizers chosen by a file."""
