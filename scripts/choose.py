"""Choose, by every arm and replicate: `python scripts/choose.py CONFIG.py`."""

from deft_tsds.cli import main

if __name__ == "__main__":
    main(lambda pipeline: pipeline.each(pipeline.select))
