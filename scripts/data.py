"""Read, check and hold out the data: `python scripts/data.py CONFIG.py`."""

from deft_tsds.cli import main

if __name__ == "__main__":
    main(lambda pipeline: pipeline.data)
