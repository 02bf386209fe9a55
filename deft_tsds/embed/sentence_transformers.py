"""Any sentence-transformers model as an encoder (extra `encoders`)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.arrays import check_count


@dataclass(frozen=True)
class SentenceTransformers:
    """An encoder by model name or folder; the model is loaded when it is first needed.

    Args:
        model: folder or hub name.
        batch_size: texts a batch. Batches are sorted by tokens, so that little of them is padding.
        normalize: scale the vectors to unit length (some models do so themselves, in a last module).
        prompt: text put before each text, for models that want one.
        device: "cpu", "cuda", "mps"; None takes the fastest there is.

    Raises:
        ValueError: sentence-transformers is not installed, or batch_size < 1.
    """

    model: str
    batch_size: int = 32
    normalize: bool = True
    prompt: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        check_count(self.batch_size, "batch_size", 1)
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ValueError(
                "The sentence-transformers encoder needs a package that is not installed: "
                'pip install "deft-tsds[encoders]", or use the lexical encoder.'
            )

    @property
    def name(self) -> str:
        return "sentence-transformers"

    def settings(self) -> dict[str, Any]:
        """What decides the vectors. The weights count by their hash; batch size and device change rounding only."""
        folder = Path(self.model)
        return {
            "model": folder.resolve().name if folder.is_dir() else self.model,
            "weights": self._fingerprint,
            "max_seq_length": self._model.max_seq_length,
            "normalize": self.normalize,
            "prompt": self.prompt,
        }

    @cached_property
    def _model(self) -> Any:
        package = importlib.import_module("sentence_transformers")
        try:
            return package.SentenceTransformer(
                self.model, device=self.device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The sentence-transformers model {self.model!r} cannot be loaded ({error}). Give a folder that "
                "SentenceTransformer.save wrote, or a hub name that is in the local cache or can be downloaded."
            ) from error

    @cached_property
    def _fingerprint(self) -> str:
        import torch

        digest = hashlib.sha256()
        for module in self._model:  # pooling and the like have no weights but decide the vectors all the same
            digest.update(repr((type(module).__name__, getattr(module, "get_config_dict", dict)())).encode())
        for name, weight in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: n texts.

        Returns:
            float32 [n, D].
        """
        lengths = self._lengths(texts)
        order = sorted(range(len(texts)), key=lambda row: -lengths[row])
        pieces = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        found = [
            self._model.encode(
                [texts[row] for row in piece],
                batch_size=self.batch_size,
                prompt=self.prompt,
                normalize_embeddings=self.normalize,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            for piece in pieces
        ]
        width = found[0].shape[1] if found else self._model.get_embedding_dimension()
        rows_nxD = np.empty((len(texts), width), np.float32)
        for piece, rows_BxD in zip(pieces, found, strict=True):
            rows_nxD[piece] = rows_BxD
        return rows_nxD

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, by which batches are sorted; characters where the model has no such tokenizer.

        The library sorts by characters, which say so little about tokens that a third of its work on mixed short texts
        is padding.
        """
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self._model, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not texts:
            return [len(text) for text in texts]
        return [len(ids) for ids in tokenizer(list(texts), truncation=True)["input_ids"]]
