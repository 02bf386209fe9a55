"""T5 1.0, T5 1.1, Flan-T5, mT5 and ByT5 in Flax NNX: the model, Hugging Face folders in and out, generation."""

from deft_tsds.t5.generate import generate, generate_texts
from deft_tsds.t5.load import load_pretrained, load_tokenizer, save_pretrained, train_tokenizer
from deft_tsds.t5.model import T5, T5Config, shift_right

__all__ = [
    "T5",
    "T5Config",
    "generate",
    "generate_texts",
    "load_pretrained",
    "load_tokenizer",
    "save_pretrained",
    "shift_right",
    "train_tokenizer",
]
