"""BART's CLS state as an embedding: the weakest of the three representations that DEFT compares (extra `encoders`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from deft_tsds.arrays import check_count
from deft_tsds.embed.folders import folder_hash, model_folder, read_settings, weight_files


@dataclass(frozen=True)
class BartCLS:
    """The last hidden state of BART's encoder at the first token, `<s>`, which BART inherits from BERT's CLS.

    No objective of BART's pretraining trains that state to stand for the text (its classifiers read the decoder's last
    state instead), so it is a baseline and no recommendation. Only safetensors are read, and no code of the folder is
    run. Batches are sorted by length.

    Args:
        model: folder or hub name of a BART (`facebook/bart-base`).
        max_tokens: longer texts are cut; None takes the model's number of positions.
        batch_size: texts a batch.
        device: "cpu", "cuda", "mps"; None takes CUDA where there is one.

    Raises:
        ValueError: torch is not installed, or a count below 1.
    """

    model: str
    max_tokens: int | None = None
    batch_size: int = 32
    device: str | None = None

    def __post_init__(self) -> None:
        check_count(self.batch_size, "batch_size", 1)
        if self.max_tokens is not None:
            check_count(self.max_tokens, "max_tokens", 1)
        if importlib.util.find_spec("torch") is None:
            raise ValueError(
                'The BART encoder needs torch, which is not installed: pip install "deft-tsds[encoders]", or use '
                "another encoder."
            )

    @property
    def name(self) -> str:
        return "bart-cls"

    def settings(self) -> dict[str, Any]:
        """What decides the vectors. The model counts by the hash of its files; batch size and device by rounding."""
        return {"max_tokens": self._loaded[2], "files": self._hash}

    @cached_property
    def _hash(self) -> str:
        return folder_hash(model_folder(self.model))

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """The tokenizer, the encoder, and the number of tokens at which texts are cut."""
        import torch
        from transformers import AutoTokenizer, BartModel

        folder = model_folder(self.model)
        weight_files(folder)  # says why a pickle is refused
        kind = read_settings(folder / "config.json").get("model_type")
        if kind != "bart":
            raise ValueError(f"{folder} holds a model of type {kind!r}: give a BART, or use another encoder.")
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model: Any = BartModel.from_pretrained(folder, use_safetensors=True, **options)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"The BART in {folder} cannot be read: {error}") from error
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        positions = model.config.max_position_embeddings
        most = min(self.max_tokens or positions, positions)
        return tokenizer, model.get_encoder().eval().to(device), most

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: n texts.

        Returns:
            float32 [n, D], as long as they come.
        """
        import torch

        tokenizer, encoder, most = self._loaded
        rows_nxD = np.empty((len(texts), encoder.config.d_model), np.float32)
        if not len(texts):
            return rows_nxD
        ids = tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        with torch.inference_mode():
            for first in range(0, len(order), self.batch_size):
                batch = order[first : first + self.batch_size]
                padded = tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
                padded = {name: padded[name].to(encoder.device) for name in ("input_ids", "attention_mask")}
                states_BxSxD = encoder(**padded).last_hidden_state
                rows_nxD[batch] = states_BxSxD[:, 0].float().cpu().numpy()
        return rows_nxD
