"""A model as users hold it: parameters, architecture, tokenizer, and how to compute.

Everything is a pure function elsewhere (`decoder`, `generate`, `hf`); this file reads checkpoints
from wherever they are and binds the functions to one architecture.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax import Array
from jax.sharding import Mesh

from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import Params
from jaxforget.engine.types import Head
from jaxforget.models import decoder, export, families, hf, tensor_files
from jaxforget.models.config import DecoderConfig
from jaxforget.models.decoder import Compute
from jaxforget.models.generate import generate_many
from jaxforget.models.tokenizer import check_tokenizer, read_tokenizer

DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


# compared and hashed by identity: it holds arrays, and its bound methods are static under jit
@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder with everything around it.

    Attributes:
      params: nested dictionary of arrays, layers stacked; see `decoder.init`.
      config: the architecture.
      hf_config: content of config.json, written back on export.
      tokenizer: of transformers, or None.
      compute: dtype of the computation and rematerialisation.
      stored_dtype: of the checkpoint's weights where `params` were read as another; None: `params`
        have the checkpoint's own.
      generation_config: content of generation_config.json, or None.
    """

    params: Params = field(repr=False)
    config: DecoderConfig
    hf_config: Mapping[str, Any] = field(repr=False)
    tokenizer: Any = field(repr=False)
    compute: Compute = Compute()
    stored_dtype: str | None = None
    generation_config: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def score(self) -> decoder.Score:
        """Log-probabilities of a batch's targets: `score(params, batch)`, see `decoder.score`.

        Equal architectures and ways to compute give the very same function, which holds no
        parameters: compiled programs are shared between models and keep none of them alive.
        """
        return decoder.scorer(self.config, self.compute)

    def head(self, params: Params) -> Head:
        """The output projection of `params`, in the compute dtype; see `decoder.head`."""
        return decoder.head(params, self.config, self.compute)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, sorted: the generation config's (else the config's) and the
        tokenizer's."""
        given = (self.generation_config or {}).get("eos_token_id")
        given = self.hf_config.get("eos_token_id") if given is None else given
        found = set(given) if isinstance(given, list | tuple) else {given}
        found.add(getattr(self.tokenizer, "eos_token_id", None))
        return tuple(sorted(int(token) for token in found if token is not None))

    def generate(
        self,
        params: Params,
        prompts: Sequence[np.ndarray],
        *,
        max_new_tokens: int,
        eos_ids: tuple[int, ...] | None = None,
        batch_size: int = 16,
        begun: Sequence[np.ndarray] | None = None,
        key: Array | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[np.ndarray]:
        """Continue token sequences; see `generate.generate_many`.

        Args:
          params: of this architecture, with or without adapters.
          prompts: int32 `[length]` each, length >= 1.
          max_new_tokens: >= 1.
          eos_ids: tokens that end a row; None: the model's own, see `eos_ids`.
          batch_size: prompts continued at a time.
          begun: what is known of each answer; None: nothing.
          key, temperature, top_p, top_k: how to sample; temperature 0 takes the likeliest token.
        Returns:
          New tokens of every prompt, in the order of `prompts`, the ending token included.
        Raises:
          UserError: an empty prompt, an impossible option, or more tokens than learned positions.
        """
        return generate_many(
            params,
            self.config,
            prompts,
            max_new_tokens=max_new_tokens,
            eos_ids=self.eos_ids if eos_ids is None else eos_ids,
            batch_size=batch_size,
            begun=begun,
            key=key,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            compute=self.compute,
        )

    def reinitialised(self, seed: int) -> "LanguageModel":
        """A model of the same kind that knows nothing: random parameters in the same dtypes.

        Args:
          seed: of the parameters, >= 0.
        """
        random = decoder.init(jax.random.key(seed), self.config)
        params = jax.tree.map(lambda new, old: new.astype(old.dtype), random, self.params)
        return dataclasses.replace(self, params=params)

    def save_pretrained(
        self,
        folder: str | pathlib.Path,
        params: Params | None = None,
        dtype: str | None = None,
    ) -> None:
        """Write a folder that `load` and transformers read; see `export.save_folder`.

        Args:
          folder: to be made, or a model folder to be replaced once the new one is complete.
          params: what to write; None: `self.params`. Adapters are merged.
          dtype: "float32", "float16" or "bfloat16" of the weights; None: the checkpoint's own.
        Raises:
          UserError: anything that hinders writing; what was there before is unharmed.
        """
        export.save_folder(
            folder,
            self.params if params is None else params,
            self.config,
            self.hf_config,
            self.tokenizer,
            generation_config=self.generation_config,
            dtype=dtype or self.stored_dtype,
        )


def load(
    path_or_id: str | pathlib.Path,
    *,
    dtype: str | None = None,
    compute: Compute | None = None,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Read a model; nothing pickled is opened and no code of a checkpoint is run.

    Args:
      path_or_id: Hugging Face folder, .gguf file, run directory (its `model/` is read), or
        the id of a repository on the hub.
      dtype: "float32", "float16" or "bfloat16" of every parameter; None: as stored.
      compute: None: the defaults of `Compute`.
      mesh: where to place the parameters, see `mesh.shardings`; None: on the default device.
    Returns:
      The model; `tokenizer` is None where the folder has none.
    Raises:
      UserError: nothing there, no config.json or weights, weights that do not fit, a tokenizer
        that cannot be read or whose ids the embedding lacks.
    """
    tensor_files.dtype_named(dtype)
    path = pathlib.Path(path_or_id).expanduser()
    if path.suffix.lower() == ".gguf":
        lm = _load_gguf(path, dtype, compute or Compute())
    else:
        lm = _load_folder(_folder(path, str(path_or_id)), dtype, compute or Compute())
    return _placed(lm, mesh)


def from_scratch(
    hf_config: Mapping[str, Any],
    tokenizer: Any,
    seed: int,
    compute: Compute | None = None,
) -> LanguageModel:
    """A new model with random float32 parameters.

    Args:
      hf_config: content of a Hugging Face config.json.
      tokenizer: of transformers, or None.
      seed: of the parameters.
      compute: None: the defaults of `Compute`.
    Raises:
      UserError: a configuration that is not supported, or a tokenizer larger than its vocabulary.
    """
    cfg = DecoderConfig.from_hf(hf_config)
    check_tokenizer(tokenizer, cfg, "the given tokenizer")
    params = decoder.init(jax.random.key(seed), cfg)
    return LanguageModel(
        params, cfg, families.text_config(hf_config), tokenizer, compute or Compute()
    )


def _folder(path: pathlib.Path, given: str) -> pathlib.Path:
    """The folder that holds config.json: the path, its `model/`, or a download."""
    if path.is_dir():
        inner = path / "model"
        return inner if not _has_config(path) and _has_config(inner) else path
    if path.exists():
        raise UserError(f"{path}: a model is a folder or a .gguf file, this is another file")
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", given):
        return _download(given)
    raise UserError(f"{path}: no such file or folder")


def _has_config(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file()


def _download(repository: str) -> pathlib.Path:
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                repository, allow_patterns=list(DOWNLOADED), ignore_patterns=["*/*"]
            )
        )
    except Exception as error:  # the hub's client raises of many libraries
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"{repository}: no such file or folder, and not available from the Hugging Face hub: "
            f"{first[0]}"
        ) from error


def _load_folder(folder: pathlib.Path, dtype: str | None, compute: Compute) -> LanguageModel:
    if not _has_config(folder):
        raise UserError(f"{folder}: has no config.json, so it is no model folder")
    config, params = hf.read_hf(folder, dtype=dtype)
    cfg = DecoderConfig.from_hf(config)
    tokenizer = read_tokenizer(folder)
    check_tokenizer(tokenizer, cfg, f"{folder}: the tokenizer")
    generation = folder / "generation_config.json"
    return LanguageModel(
        params,
        cfg,
        config,
        tokenizer,
        compute,
        stored_dtype=None if dtype is None else _stored_dtype(folder),
        generation_config=tensor_files.read_json(generation) if generation.is_file() else None,
    )


def _load_gguf(path: pathlib.Path, dtype: str | None, compute: Compute) -> LanguageModel:
    from jaxforget.models.gguf import read_gguf

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    config, params, tokenizer = read_gguf(path, dtype)
    cfg = DecoderConfig.from_hf(config)
    check_tokenizer(tokenizer, cfg, f"{path}: the tokenizer")
    return LanguageModel(params, cfg, config, tokenizer, compute)


def _placed(lm: LanguageModel, mesh: Mesh | None) -> LanguageModel:
    if mesh is None:
        params = jax.tree.map(jnp.asarray, lm.params)
    else:
        params = meshes.put(lm.params, meshes.shardings(lm.params, mesh))
    return dataclasses.replace(lm, params=params)


def _stored_dtype(folder: pathlib.Path) -> str:
    """The dtype of all weights of a folder, or "float32" where there are several."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = set()
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(str(path), framework="numpy") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}
    found &= set(names)  # integer buffers are no weights
    return names[found.pop()] if len(found) == 1 else "float32"
