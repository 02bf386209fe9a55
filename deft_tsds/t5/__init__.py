"""T5 1.0, T5 1.1, Flan-T5, mT5 and ByT5 in Flax NNX: the model, Hugging Face folders in and out, generation."""

from deft_tsds.t5.card import write_model_card
from deft_tsds.t5.generate import generate, generate_texts
from deft_tsds.t5.load import load_pretrained, load_tokenizer, save_pretrained, train_tokenizer
from deft_tsds.t5.lora import add_lora, merge_lora
from deft_tsds.t5.model import T5, T5Config, shift_right

__all__ = [
    "T5",
    "T5Config",
    "add_lora",
    "generate",
    "generate_texts",
    "load_pretrained",
    "load_tokenizer",
    "merge_lora",
    "save_pretrained",
    "shift_right",
    "train_tokenizer",
    "write_model_card",
]
