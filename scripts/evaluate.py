"""Score every fine-tuned model and print the table: `python scripts/evaluate.py CONFIG.py`."""

from deft_tsds.cli import main, show_table

if __name__ == "__main__":
    main(show_table)
