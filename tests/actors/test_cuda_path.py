"""The CUDA path at the real shapes without a device: fake tensors on `cuda:0` that have a shape, a
dtype and a device, and no values. What would wait for the device, or copy to it unpinned, raises or
is counted. What a CPU build of torch has nothing for has a stand-in: uploads, and indexing, which
asks for a device guard on its way to the dispatcher.
"""

from collections import Counter
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.checkpoints.presets import config_of
from shardrank.actors.config import RerankerConfig
from shardrank.actors.model import device as device_module
from shardrank.actors.model.architecture import architecture
from shardrank.actors.model.decoder import Decoder
from shardrank.actors.model.features import FeatureCache
from shardrank.actors.model.model import RerankerModel
from shardrank.actors.model.vision import VisionTower
from shardrank.actors.prepared import PreparedPair, Visual
from shardrank.actors.scorer import Scorer

CUDA = torch.device("cuda:0")
WAITING = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "_unique2")
COPYING = ("to", "_to_copy", "copy_")


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name, named = function.overloadpacket.__name__, named or {}
        given = [*arguments, named.get("device")]
        devices = {x.type for x in given if isinstance(x, torch.device)}
        devices |= {x.device.type for x in given if isinstance(x, torch.Tensor)}
        self.counts[name] += name in WAITING or (name in COPYING and len(devices) > 1)
        return function(*arguments, **named)


class Indexing(TorchFunctionMode):
    """`tensor[...]` by the operators that it stands for."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is torch.Tensor.__getitem__:
            tensor, indices = self.viewed(*arguments)
            return torch.ops.aten.index(tensor, indices) if indices else tensor
        if function is torch.Tensor.__setitem__:
            tensor, indices = self.viewed(*arguments[:2])
            if indices:
                return torch.ops.aten.index_put_(tensor, indices, arguments[2])
            return tensor.copy_(arguments[2])
        return function(*arguments, **(named or {}))

    @staticmethod
    def viewed(tensor, keys):
        indices, dim = {}, 0
        for key in keys if isinstance(keys, tuple) else (keys,):
            if isinstance(key, torch.Tensor):
                indices[dim] = key
            elif isinstance(key, int):
                tensor, dim = tensor.select(dim, key), dim - 1
            elif key is None:
                tensor = tensor.unsqueeze(dim)
            elif key is Ellipsis:
                dim = tensor.dim() - 2
            elif key != slice(None):
                tensor = torch.ops.aten.slice(tensor, dim, key.start, key.stop)
            dim += 1
        return tensor, [indices.get(n) for n in range(max(indices, default=-1) + 1)]


@contextmanager
def fake():
    with FakeTensorMode(), torch.inference_mode(), Indexing(), Waits() as waits:
        yield waits


@pytest.fixture(autouse=True)
def _uploads(monkeypatch):
    def uploaded(tensor, device):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    monkeypatch.setattr(device_module, "_uploaded", uploaded)


def architecture_of(preset):
    """Of four layers each, which are all alike."""
    config = config_of(preset)
    config["text_config"] |= {"num_hidden_layers": 4}
    config["vision_config"] |= {"depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
    return architecture(config)


def scorer_of(sizes, is_fp8):
    """A scorer with fake weights; to be called in fake mode."""
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device=CUDA)
        for name, shape in sizes.shapes().items()
    }
    scorer = object.__new__(Scorer)
    scorer.config = RerankerConfig(model="none")
    scorer.device, scorer.max_batch_tokens = CUDA, 16_384
    scorer.vision_cache = FeatureCache(1 << 40)
    scorer._model = RerankerModel(
        vision=VisionTower(weights, sizes.vision),
        decoder=Decoder(weights, sizes.text, is_fp8),
        head=torch.empty(sizes.text.hidden_size, device=CUDA),
        device=CUDA,
        dtype=torch.bfloat16,
        bytes_per_token=1,
    )
    return scorer


def pair_of(*parts):
    """Parts are numbers of text tokens, or (visual, number of its tokens)."""
    ids, visual = [], []
    for number, part in enumerate(parts):
        index, length = part if isinstance(part, tuple) else (-1, part)
        ids += [5] * length if index >= 0 else [number + 10 + length] * length
        visual += [index] * length
    positions = np.tile(np.arange(len(ids), dtype=np.int32), (3, 1))
    return PreparedPair(
        np.array(ids, np.int32), positions, np.array(visual, np.int32), is_truncated=False
    )


@pytest.mark.parametrize(
    ("preset", "is_fp8"), [("2b", False), ("8b", False), ("8b", True)], ids=["2b", "8b", "8b-fp8"]
)
def test_a_forward_at_the_real_shapes_waits_for_nothing(preset, is_fp8):
    """Short documents of one query, one of 9,000 tokens, pages behind a long query (whose keys are
    merged, not gathered), and all of it behind a prefix kept from the plan before."""
    pages = [Visual.of(np.full((1, 32 * 45, 32 * 40, 3), n, np.uint8)) for n in range(2)]
    texts = [pair_of(60, 28, 70 + n) for n in range(60)] + [pair_of(60, 28, 9_000)]
    mixed = [pair_of(60, 900, (n % 2, 1_800), 6 + n) for n in range(2)]
    mixed += [pair_of(60, 900, 20 + n) for n in range(30)]
    sizes = architecture_of(preset)
    text = sizes.text
    with fake() as waits:
        scorer = scorer_of(sizes, is_fp8)
        waits.counts.clear()
        logits, prefix = scorer._forward(texts, [], None, 88)
        again, _ = scorer._forward([*mixed, *texts], pages, prefix, 0)
        alone, none = scorer._forward(texts[:1], [], None, 0)
    for found, num_pairs in ((logits, 61), (again, 93), (alone, 1)):
        assert (found.shape, found.dtype, found.device) == ((num_pairs,), torch.float32, CUDA)
    assert none is None and len(prefix.layers) == text.num_hidden_layers
    for states in (states for layer in prefix.layers for states in layer):
        assert states.shape == (88, text.num_key_value_heads, text.head_dim)
        assert (states.dtype, states.device) == (torch.bfloat16, CUDA)
    assert len(scorer.vision_cache._tiers[0]._values) == 2
    assert not waits.counts.total()


@pytest.mark.parametrize("read", [torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.cpu])
def test_what_waits_is_counted_or_raises(read):
    with fake() as waits:
        values = torch.empty(3, device=CUDA)
        with suppress(RuntimeError):
            read(values)
            assert waits.counts.total() == 1
