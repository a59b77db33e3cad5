"""Files that prove themselves: tensors, or JSON, with the SHA-256 of all that is in them.

A bit that flips on a disk or on the way may leave a file that still opens, with another number in it. Here every number, name
and setting is under one hash, so that such a file is an error and never a result. The hash is no signature: who changes a file
on purpose can work it out again, so what is read is checked for sense as well, by whoever reads it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from pandalib.io import write_atomically

HASH = "sha256"  # the key of the hash in a sealed JSON, and in the metadata of a file of tensors


def sealed(content: dict) -> bytes:
    """JSON of `content` with its hash as one more key, "sha256".

    Raises ValueError for NaN and infinite numbers, which JSON does not have.
    """
    content = json.loads(
        json.dumps(content, allow_nan=False)
    )  # as it will be read: lists for tuples, texts for keys
    return (json.dumps(content | {HASH: _of_json(content)}, indent=1) + "\n").encode()


def unsealed(text: bytes | str) -> dict:
    """What `sealed` wrote, without the hash.

    Raises ValueError where it is no JSON object, has no hash or another content than was sealed.
    """
    content = parsed(text)
    if not isinstance(content, dict) or HASH not in content:
        raise ValueError("it is no JSON object with the SHA-256 of its content")
    if content.pop(HASH) != _of_json(content):
        raise ValueError("its content is not the one that was written, by its SHA-256")
    return content


def parsed(text: bytes | str):
    """JSON that may come from a stranger. Raises ValueError, also for what is nested too deep, for NaN and for infinite numbers."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def write_tensors(path: Path | str, tensors: dict, facts: dict) -> None:
    """Write torch tensors by name, and facts that JSON can hold, as safetensors, whole or not at all."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = json.loads(json.dumps(facts, allow_nan=False))
    # One entry of metadata only: safetensors writes several in any order, and the same content is to be the same file.
    write_atomically(
        Path(path),
        save(
            tensors,
            metadata={"pandalib": json.dumps({"facts": facts, HASH: _of_tensors(tensors, facts)})},
        ),
    )


def read_tensors(path: Path | str) -> tuple[dict, dict]:
    """The tensors and facts that `write_tensors` wrote.

    Raises FileNotFoundError; ValueError for any file whose content is not, bit by bit, what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = Path(
        path
    ).read_bytes()  # read by us: safetensors knows no path with bytes that are no text
    try:
        tensors = load(content)
        header = content[
            8 : 8 + int.from_bytes(content[:8], "little")
        ]  # as `load` has just found it right
        metadata = parsed(parsed(header)["__metadata__"]["pandalib"])
        if metadata[HASH] != _of_tensors(tensors, metadata["facts"]):
            raise ValueError("its content is not the one that was written, by its SHA-256")
        return tensors, metadata["facts"]
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise ValueError(" ".join(str(error).split())[:100]) from None


def _of_json(content) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _of_tensors(tensors: dict, facts) -> str:
    digest = hashlib.sha256(_canonical(facts))
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name].numpy())
        digest.update(f"|{name}|{array.dtype}{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _canonical(content) -> bytes:
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _no_constant(text: str):
    raise ValueError(f"{text} is no number of JSON")
