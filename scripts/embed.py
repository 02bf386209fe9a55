"""Embed the pool and the queries: `python scripts/embed.py CONFIG.py`."""

from deft_tsds.cli import main

if __name__ == "__main__":
    main(lambda pipeline: pipeline.embed)
