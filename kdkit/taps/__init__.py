"""Reading any module's inside by name, without editing it.

A tap is a place in a model: `logits` (the output), `embedding` (the pooled features that feed the classifier, before
dropout), `stem`, `stage1`, `stage2`, …, `stage-1` (the last), or any module path (`layer1.2`), each but the first two
with an optional `:input`, `:output` (the default) or `:preact` (what the last activation reads). Values are (B, C)
logits, (B, D) embeddings, (B, C, H, W) maps (channels-last ones are turned) or (B, N, D) tokens.
"""

from kdkit.taps.capture import Taps, classifier, expand
from kdkit.taps.trace import shared_runs

__all__ = ["Taps", "classifier", "expand", "shared_runs"]
