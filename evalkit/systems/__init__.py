"""Systems: codecs, baselines, floors and ceilings, one family a file.

A system is any object with some of these capabilities (no base class):

``encode(clip) -> Tokens`` and ``decode(tokens, seed) -> Clip``
    A tokenizer. ``decode`` restores exactly ``tokens.samples`` samples at ``tokens.sample_rate``.
``reconstruct(clip, seed) -> Clip``
    Something that changes audio without emitting tokens (floors, ceilings, outputs decoded elsewhere).

and, optionally, these attributes:

``sample_rate``: the rate in Hz it works at; the harness resamples in and out. None or absent: whatever comes.
``channels``: 1 where it takes mono only (a clip with more is ``n/a``); None or absent: any.
``batch_size`` and ``encode_batch(clips)``, ``decode_batch(tokens, seeds)``: for systems that gain by batching.
``encode_blocks(blocks)`` with ``tokens_of(codes, samples)``, and ``decode_blocks(tokens, seed)``: the same tokens and
audio piece by piece, for recordings of any length (`evalkit.coding`). Blocks are float ``[channels, samples]`` at
``sample_rate``; codes come as ``[codebooks, frames]``, and ``tokens_of`` makes `Tokens` of all of them.
``parameters``: number of trained parameters. ``fingerprint()``: hash of weights or of anything else that
decides the output and is not in the spec. ``trained_on``: ids of the clips that it was trained on, by data set name:
they are left out of a run. ``close()``: called when the worker is done with it.

`Clip` and `Tokens` check themselves when built; the harness checks lengths. See docs/add-a-codec.md.
"""
