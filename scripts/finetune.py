"""Fine-tune on every selection: `python scripts/finetune.py CONFIG.py`."""

from deft_tsds.cli import main

if __name__ == "__main__":
    main(lambda pipeline: pipeline.each(pipeline.finetune))
