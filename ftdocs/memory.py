"""Will it fit, before it runs: the memory of a training step in closed form, moment by moment.

Nothing is fitted to measurements. Each term is counted from what transformers' layers keep for the backward pass, and
tests compare it with a trace of the real model (:mod:`ftdocs.trace`). What is not in it: the framework itself (about
0.5 GB on a GPU), the allocator's gaps, and work space of single operations.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from ftdocs.errors import InputError
from ftdocs.shapes import Linear, Shape

Method = Literal["full", "lora", "qlora"]
Dtype = Literal["bf16", "fp16", "fp32"]
Sharding = Literal["none", "ddp", "fsdp", "zero2", "zero3"]
Optimizer = Literal["adamw", "adamw-fused", "adamw-8bit", "paged-adamw", "paged-adamw-8bit"]
Attention = Literal["sdpa", "flash", "eager"]
TORCHS = ("adamw", "adamw-fused")  # optimisers of PyTorch; the others are of bitsandbytes
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
BLOCK, STATE_BLOCK = (
    64,
    256,
)  # of bitsandbytes: weights that share a scale in nf4, numbers of 8-bit states that do
NF4 = 0.5 + 1 / BLOCK + 4 / (BLOCK * 256)  # bytes a weight with double quantisation (Dettmers et al., 2023)
EIGHT_BIT = 2 * (1 + 4 / STATE_BLOCK)  # bytes a parameter of both moments (Dettmers et al., 2022)
MOST = 10_000_000  # of what is counted in a setting: more is a slip of the hand
BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers


@dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as memory depends on it.

    Attributes:
        method: full, lora, or qlora: nf4 with double quantisation below the adapters.
        dtype: of weights, gradients and full fine-tuning's optimiser state; adapters and theirs are float32.
        batch_size: sequences of a micro-batch on one GPU.
        accumulation: micro-batches of a step: the gradients of those before lie beside the next one's activations.
        seq_len: tokens of a sequence.
        gpus: that train together.
        sharding: what they share: none and ddp nothing, zero2 gradients and state, fsdp and zero3 the weights too.
        checkpointing: a block keeps what goes in, and computes the rest anew in the backward pass.
        optimizer: adamw is the ``foreach`` kind; what is paged lies in the CPU's memory.
        master_weights: weights are float32, and matrix products read copies in ``dtype`` (autocast).
        fused_loss: the logits are made and dropped in pieces.
        loss_chunk: of how many positions the pieces are, as in ``ftdocs.loss``; 0: as Liger Kernel cuts them.
        attention: eager keeps a matrix of tokens × tokens for each head.
        cpu_offload: optimiser state, and what is sharded, lies in the CPU's memory between uses.
        sync_each_batch: FSDP divides the gradients of each micro-batch, as the ``loop`` engine does; else, as under
            Accelerate, they stay whole until the step's last one.
        rank: LoRA's.
        targets: names of the linear layers with adapters, or all-linear.
    """

    method: Method = "full"
    dtype: Dtype = "bf16"
    batch_size: int = 1
    accumulation: int = 1
    seq_len: int = 512
    gpus: int = 1
    sharding: Sharding = "none"
    checkpointing: bool = False
    optimizer: Optimizer = "adamw"
    master_weights: bool = False
    fused_loss: bool = False
    loss_chunk: int = 0
    attention: Attention = "sdpa"
    cpu_offload: bool = False
    sync_each_batch: bool = False
    rank: int = 8
    targets: str | list[str] = "all-linear"

    def __post_init__(self):
        for name, kinds in CHOICES.items():
            if getattr(self, name) not in kinds:
                raise InputError(f"{name}: {getattr(self, name)!r} is none of {', '.join(kinds)}")
        for name in ("batch_size", "accumulation", "seq_len", "gpus", "rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
            if getattr(self, name) > MOST:
                raise InputError(f"{name} is {getattr(self, name)}; give at most {MOST}")
        several, fp32 = self.gpus > 1, self.dtype == "fp32"
        refused = {
            f"loss_chunk is {self.loss_chunk}; give at least 1, or 0 for Liger Kernel's pieces": (
                self.loss_chunk < 0
            ),
            "full with dtype fp16: a GradScaler refuses float16 gradients; add master_weights, or choose bf16": (
                self.full and self.dtype == "fp16" and not (self.master_weights or self.steps_copies)
            ),
            "flash attention with dtype fp32: it is made for 16 bits; choose bf16, or sdpa": (
                self.attention == "flash" and fp32
            ),
            f"{self.gpus} GPUs with sharding none; choose ddp, fsdp, zero2 or zero3": (
                several and self.sharding == "none"
            ),
            "qlora with dtype fp32: quantised weights are multiplied in bf16 or fp16; choose one": (
                self.method == "qlora" and fp32
            ),
            f"qlora with {self.sharding}: choose ddp, or fsdp, which shard quantised weights or copy them": (
                self.method == "qlora" and self.sharding in ("zero2", "zero3") and several
            ),
            "master_weights with dtype fp32: the weights are float32 already; choose bf16 or leave it out": (
                self.master_weights and fp32
            ),
            "cpu_offload with ddp: each GPU keeps everything; choose fsdp, zero2 or zero3": (
                self.cpu_offload and self.sharding == "ddp"
            ),
            f"{self.optimizer} with fsdp: bitsandbytes cannot step what is sharded; choose adamw": (
                several and self.sharding == "fsdp" and self.optimizer not in TORCHS
            ),
            "cpu_offload with a paged optimizer: both move its state; choose one of them": (
                self.cpu_offload and self.optimizer.startswith("paged")
            ),
        }
        for message, holds in refused.items():
            if holds:
                raise InputError(message)

    @property
    def full(self) -> bool:
        """Every weight is trained."""
        return self.method == "full"

    @property
    def autocast(self) -> bool:
        """Weights in float32, matrix products in 16 bits; LoRA's frozen weights stay as they are."""
        return self.master_weights

    @property
    def size(self) -> int:
        """Bytes of a number that goes through the matrix products."""
        return BYTES[self.dtype]

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream."""
        return 4 if self.autocast and self.full else self.size

    @property
    def weight(self) -> int:
        """Bytes of a weight that is not quantised."""
        return 4 if self.autocast and self.full else self.size

    @property
    def divides_from_the_start(self) -> bool:
        """ZeRO-3's share of the gradients is allocated once, and stays between steps."""
        return self.gpus > 1 and self.sharding == "zero3" and not self.cpu_offload

    @property
    def steps_copies(self) -> bool:
        """DeepSpeed steps float32 weights of its own, with any optimiser (its ``stage_1_and_2.py``, ``stage3.py``)."""
        return self.full and self.gpus > 1 and self.sharding in ("zero2", "zero3") and self.weight == 2

    @property
    def tokens(self) -> int:
        """Of a micro-batch, padding included."""
        return self.batch_size * self.seq_len

    @property
    def shares(self) -> int:
        """Among how many GPUs the weights are divided."""
        return self.gpus if self.sharding in ("fsdp", "zero3") else 1

    @property
    def state_shares(self) -> int:
        """Among how many GPUs gradients and optimiser state are divided."""
        return self.gpus if self.sharding in ("fsdp", "zero2", "zero3") else 1


CHOICES = {
    "method": get_args(Method),
    "dtype": get_args(Dtype),
    "sharding": get_args(Sharding),
    "optimizer": get_args(Optimizer),
    "attention": get_args(Attention),
}


@dataclass(frozen=True)
class Moment:
    """A moment of a step: its name, and bytes by what they hold."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Need:
    """What a training needs on one GPU.

    Attributes:
        peak: the moment that holds the most.
        moments: all of them, in the order of a step.
        resting_bytes: what stays between steps: weights and optimiser state, gradients freed.
        assumptions: what the figures stand on.
    """

    peak: Moment
    moments: list[Moment]
    resting_bytes: int
    assumptions: list[str] = field(default_factory=list)


# --- what does not depend on the tokens ----------------------------------------------------------------------------


def trained_parameters(shape: Shape, setting: Setting) -> int:
    """How many parameters move: all, or the adapters'."""
    return shape.parameters if setting.full else shape.lora_parameters(setting.rank, setting.targets)


def weight_bytes(shape: Shape, setting: Setting) -> int:
    """All weights, frozen and trained, before they are divided among GPUs."""
    adapters = 0 if setting.full else 4 * trained_parameters(shape, setting)
    if setting.method != "qlora":
        return setting.weight * shape.parameters + adapters
    quantised = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
    return round(NF4 * quantised) + setting.size * (shape.parameters - quantised) + adapters


def state_bytes(shape: Shape, setting: Setting) -> int:
    """AdamW's two moments of all that is trained; under DeepSpeed also the float32 weights that it steps."""
    trained = trained_parameters(shape, setting)
    own = 4 * trained if setting.steps_copies else 0
    if setting.optimizer.startswith("paged"):
        return own
    if setting.optimizer == "adamw-8bit":
        return own + round(EIGHT_BIT * trained)
    return own + 2 * (setting.weight if setting.full and not own else 4) * trained


def gradient_bytes(shape: Shape, setting: Setting) -> int:
    """A gradient for each trained parameter, in its dtype."""
    return (setting.weight if setting.full else 4) * trained_parameters(shape, setting)


# --- what does: bytes a token --------------------------------------------------------------------------------------


def kept_by_block(shape: Shape, setting: Setting) -> int:
    """Bytes a token that one block keeps for the backward pass, all of it but the tokens × tokens matrices.

    Counted from transformers' layers. A weight that is frozen needs nothing of what came in to make its gradient; an
    adapter does, in float32 where there is no autocast.
    """
    return kept_by_attention(shape, setting) + kept_by_mlp(shape, setting)


def kept_by_attention(shape: Shape, setting: Setting) -> int:
    """A block's first half, with its norm."""
    size = setting.size
    # Eager attention repeats keys and values for every head of the queries.
    keys = shape.queries if setting.attention == "eager" else shape.keys
    kept = size * (2 * shape.queries + 2 * keys) + 4 * shape.heads
    if shape.family == "phi3":  # one product makes all three, and the values, a view, keep its whole result
        kept += size * (shape.queries + shape.keys)
    if shape.family in ("qwen3", "gemma3_text"):  # queries and keys are normed too
        width, heads = shape.queries + shape.keys, shape.heads + shape.kv_heads
        scaled = 4 if shape.family == "gemma3_text" else size
        kept += 4 * width + 4 * heads + (scaled * width if setting.full else 0)
    return kept + kept_around(shape, setting, halves(shape)[0]) + norm(shape, setting)


def kept_by_mlp(shape: Shape, setting: Setting) -> int:
    """A block's second half, with its norm, if it has one of its own."""
    size, middle = setting.size, shape.intermediate
    if shape.gated:
        kept = size * 3 * middle  # the gate before and after its activation, and what it multiplies
    else:
        # gelu_new is written in Python and keeps x, x/2, the tanh, and 1 + tanh; gelu is one operation.
        kept = size * middle * (1 if shape.family == "bert" else 4)
    if setting.full:
        kept += size * middle  # the input of the last product
    own = norm(shape, setting) if shape.norm_count > 1 else 0
    return kept + kept_around(shape, setting, halves(shape)[1]) + own


def kept_around(shape: Shape, setting: Setting, linears: list[Linear]) -> int:
    """Bytes a token that either half of a block keeps besides: inputs of its linear layers, and what follows them."""
    kept = 0
    if not setting.full:
        kept += adapter_inputs(shape, setting, linears)
    elif setting.autocast:  # every product has its own bfloat16 copy of what comes in
        ends = outputs_of(shape)
        ins = [each for each in linears if each.inputs == shape.hidden and each.name not in ends]
        kept += setting.size * shape.hidden * len(ins)
    if shape.norm_count == 4:  # one more behind each half, whose result no product reads
        kept += norm(shape, setting, read=False)
    if shape.family in ("gpt2", "bert"):  # dropout on the stream, with a mask of one byte a number
        kept += shape.hidden
    return kept


def halves(shape: Shape) -> tuple[list[Linear], list[Linear]]:
    """The linear layers of a block's attention, and those of its MLP."""
    names = [linear.name for linear in shape.linears]
    cut = names.index(outputs_of(shape)[0]) + 1
    return list(shape.linears[:cut]), list(shape.linears[cut:])


def outputs_of(shape: Shape) -> tuple[str, str]:
    """The names of the two linear layers that end a block's attention and its MLP."""
    ends = [linear.name for linear in shape.linears if linear.outputs == shape.hidden]
    return (ends[-2] if len(ends) > 1 else ends[-1], ends[-1])


def norm(shape: Shape, setting: Setting, read: bool = True) -> int:
    """Bytes a token that one norm over the residual stream keeps.

    RMSNorm in transformers works in float32: it keeps its input so, and if it is trained what it scales, which Gemma
    leaves in float32. LayerNorm is one operation, and keeps its input. ``read``: matrix products read, and keep, the
    result; under autocast each of them a copy of its own, which is counted there.
    """
    result = setting.size * shape.hidden if setting.full and read and not setting.autocast else 0
    if not shape.gated:
        return setting.stream * shape.hidden + 8 + result
    if not setting.full:
        return 4 * shape.hidden + 4
    scaled = 4 if shape.family.startswith("gemma") else setting.stream
    return 4 * shape.hidden + 4 + scaled * shape.hidden + result


def adapter_inputs(shape: Shape, setting: Setting, linears: list[Linear]) -> int:
    """Bytes a token that the adapters of some of a block's layers keep: their inputs, and what A makes of them.

    In 16 bits each adapter makes a copy of its own, in float32 or under autocast in bfloat16. In float32 there is none:
    the layers that read the same share it, and what ends attention is kept by attention already.
    """
    targets = [linear for linear in shape.targeted(setting.targets) if linear in linears]
    if setting.dtype != "fp32":
        size = setting.size if setting.autocast else 4
        return sum(size * (linear.inputs + setting.rank) for linear in targets)
    ends = outputs_of(shape)
    shared = {linear.name if linear.name in ends else "": linear.inputs for linear in targets}
    shared.pop(ends[0], None)
    return 4 * (sum(shared.values()) + setting.rank * len(targets))


def below_the_first_adapter(shape: Shape, setting: Setting) -> int:
    """Bytes that the first block does not keep: below its first adapter nothing is differentiated."""
    targets, (attention, mlp) = shape.targeted(setting.targets), halves(shape)
    if any(linear in attention[:-1] for linear in targets):
        return setting.tokens * norm(shape, setting)
    unused = kept_by_attention(shape, setting) - adapter_inputs(shape, setting, attention)
    if attention[-1] in targets:  # which shares its input with attention in float32
        unused -= setting.size * shape.queries if setting.dtype == "fp32" else 0
    elif targets == [mlp[-1]]:
        unused += kept_by_mlp(shape, setting) - adapter_inputs(shape, setting, mlp)
    else:
        unused += norm(shape, setting)
    return setting.tokens * unused + scores(shape, setting)


def scores(shape: Shape, setting: Setting) -> int:
    """Bytes of a block's tokens × tokens matrices: none but for eager attention.

    That keeps a float32 softmax and a copy of it in the dtype of the values; GPT-2 and BERT the softmax alone, in that
    dtype, but for GPT-2's float32 weights under autocast; Gemma 2 what it caps the scores with as well.
    """
    if setting.attention != "eager":
        return 0
    copy = setting.size if setting.size == 2 else 0
    each = setting.size if one_softmax(shape, setting) else 4 + copy
    each += setting.size if shape.family == "gemma2" else 0
    return each * setting.batch_size * shape.heads * setting.seq_len**2


def one_softmax(shape: Shape, setting: Setting) -> bool:
    """Whether eager attention has its softmax in one dtype alone."""
    return shape.family == "bert" or (shape.family == "gpt2" and not (setting.autocast and setting.full))


def backward_of_attention(shape: Shape, setting: Setting) -> int:
    """Bytes that come on top while a block's eager attention is differentiated, less what its MLP has given back.

    The gradients of the softmax's result and of the scores, as float32 where the softmax is; its copy has gone by then.
    """
    if setting.attention != "eager":
        return 0
    copy = setting.size if setting.size == 2 else 0
    each = 2 * setting.size if one_softmax(shape, setting) else 8 - copy
    matrices = each * setting.batch_size * shape.heads * setting.seq_len**2
    return matrices + setting.tokens * (setting.stream * shape.hidden - kept_by_mlp(shape, setting))


def backward_of_block(shape: Shape, setting: Setting) -> int:
    """Bytes a token that come on top while a block's MLP is differentiated: its largest gradients."""
    size, middle = setting.size, shape.intermediate
    gradients = setting.stream * shape.hidden
    if setting.full:
        return gradients + size * middle * (2 if shape.gated else 1)
    last = outputs_of(shape)[1]
    adapted = any(linear.name == last for linear in shape.targeted(setting.targets))
    if adapted:  # through the adapter in float32, beside the way through the frozen weight; as traced
        casts = {False: 10, True: 8}[setting.autocast] if size == 2 else 0
        return gradients + casts * shape.hidden + size * middle * (3 if setting.autocast else 2)
    return gradients + size * middle * (3 if shape.gated else 2)


def loss_bytes(shape: Shape, setting: Setting) -> int:
    """Bytes at the start of the loss's backward: three float32 numbers a logit, or the pieces of a fused loss."""
    if shape.family == "bert":
        return 0
    if not setting.fused_loss:
        capped = setting.size if shape.family == "gemma2" else 0  # its logits go through a tanh
        return (12 + capped) * setting.tokens * shape.vocabulary
    if in_chunks(shape, setting):
        return chunk_bytes(shape, setting)
    # Liger Kernel's pieces (Hsu et al., 2024): as many tokens at once as make the logits no larger than the input.
    pieces = -(-shape.vocabulary // shape.hidden)
    rows = 1 << max(0, (-(-setting.tokens // pieces) - 1).bit_length())
    return setting.tokens * shape.hidden * setting.size + rows * shape.vocabulary * (setting.size + 4)


def in_chunks(shape: Shape, setting: Setting) -> bool:
    """Whether the loss is that of ``ftdocs.loss``."""
    return setting.fused_loss and setting.loss_chunk > 0 and shape.family != "bert"


def chunk_bytes(shape: Shape, setting: Setting) -> int:
    """Bytes of ``ftdocs.loss`` at its fullest, but for the head's gradient, which it sums in float32.

    The input of the head is copied, and its gradient is float32. Of a piece there are the float32 logits, and beside
    them first their exponentials, whose sum is the softmax's divisor, then a copy in the dtype of the products and what
    that adds to the head's gradient.
    """
    logits = min(setting.loss_chunk, setting.tokens) * shape.vocabulary
    copied = setting.size if setting.size < 4 else 0
    added = setting.size * shape.embedding if setting.full else 0
    return (
        setting.tokens * shape.hidden * (setting.size + 4)
        + 4 * logits
        + max(4 * logits, copied * logits + added)
    )


# --- the moments ---------------------------------------------------------------------------------------------------


def moments(shape: Shape, setting: Setting) -> list[Moment]:
    """What one GPU holds at the moments of a step that can be its largest, in their order.

    When the loss is differentiated, activations are at their fullest and gradients have not come; from then on one
    goes as the other comes, block by block, until the optimiser steps.
    """
    tokens, layers = setting.tokens, shape.layers
    offload, shares = setting.cpu_offload, setting.state_shares
    weights = 0 if offload and setting.shares > 1 else weight_bytes(shape, setting) // setting.shares
    state = 0 if offload else state_bytes(shape, setting) // shares
    number = setting.weight if setting.full else 4  # bytes of a gradient
    by_block = gradient_bytes(shape, setting)
    by_root = number * shape.root if setting.full else 0
    by_block = (by_block - by_root) // layers

    kept = tokens * kept_by_block(shape, setting) + scores(shape, setting)
    entry = tokens * setting.stream * shape.hidden  # what goes into a block
    held = entry if setting.checkpointing else kept
    unused = 0 if setting.full or setting.checkpointing else below_the_first_adapter(shape, setting)
    final = tokens * (
        norm(shape, setting) + (setting.size * shape.hidden if setting.autocast and setting.full else 0)
    )
    copies, copied = bf16_copies(shape, setting), f"{setting.dtype} copies"
    gathered, reduced = gathered_bytes(shape, setting)
    before = gradients_before(shape, setting)
    divided = setting.shares > 1 and before < gradient_bytes(
        shape, setting
    )  # and the root's new one is whole
    buckets, kept_buckets = bucket_bytes(shape, setting)
    base = {"weights": weights, "optimiser": state, "gathered weights": gathered, "buckets": buckets}

    def arrived(blocks: int, root: bool = True) -> int:
        """Gradients of so many blocks, as one GPU keeps them; FSDP's root unit is whole until the end."""
        whole = by_root if root else 0
        if offload and shares > 1:
            return whole if setting.shares > 1 else 0  # they go through the bucket
        sharded_root = whole if setting.shares > 1 else whole // shares
        return blocks * by_block // shares + sharded_root

    head = number * shape.embedding if setting.full and shape.family != "bert" else 0
    head = head if setting.shares > 1 or shares == 1 else head // shares
    by_loss = head if setting.fused_loss else 0
    if in_chunks(shape, setting) and setting.full:
        by_loss = 4 * shape.embedding
    top, bottom = layers, 1
    found = [
        Moment(
            "the loss's backward",
            {
                **base,
                copied: copies if not setting.checkpointing else copies_of_head(shape, setting),
                "gradients": before + by_loss,
                "activations": layers * held + final - unused,
                "logits": loss_bytes(shape, setting),
            },
        )
    ]
    if (
        setting.shares > 1 and setting.sharding == "fsdp"
    ):  # what was received lies beside what it is copied into
        root = setting.weight * shape.root
        start = {**base, "gathered weights": gathered + root, "gradients": before}
        found.insert(0, Moment("the start of the forward pass", start))
    if setting.checkpointing and copies:
        # ftdocs.loss makes its gradients in the forward pass; the others have no gradient of the logits yet.
        logits = loss_bytes(shape, setting) * (12 if in_chunks(shape, setting) else 10) // 12
        at_end = {**found[-1].parts, copied: copies, "logits": logits}
        found.insert(-1, Moment("the end of the forward pass", at_end))
    # RMSNorm's backward is six operations in float32; LayerNorm's is one.
    norming = (24 if shape.gated else 3) * tokens * shape.hidden
    found.append(
        Moment(
            "the last norm's backward",
            {
                **base,
                copied: copies if not setting.checkpointing else 0,
                "gradients": before + head,
                "activations": layers * held + norming - unused,
            },
        )
    )
    moving = max(tokens * backward_of_block(shape, setting), backward_of_attention(shape, setting))
    for name, block in (("the last block's backward", top), ("the first block's backward", bottom)):
        below = (block - 1) * held if setting.checkpointing or block > 1 else 0
        own = kept + (entry if setting.checkpointing else 0)
        mlp = number * shape.linears[-1].parameters if setting.full else 0
        # A head of its own has been added to what was there; that of a tied one waits for the embedding's.
        here = (
            before + head * (shape.tied or divided) if before else arrived(layers - block, root=False) + head
        )
        found.append(
            Moment(
                name,
                {
                    **base,
                    copied: copies * block // layers if not setting.checkpointing else copies // layers,
                    "gradients": here + mlp + reduced,
                    "activations": below + own + moving - unused,
                    "dequantised weights": dequantised(shape, setting),
                },
            )
        )
    # A tied embedding has a gradient from both its uses, and their sum is a third tensor.
    lookup = 2 * number * shape.embedding if setting.full and shape.tied and shape.family != "bert" else 0
    # Beside one of a micro-batch before, it is one tensor more until it has been added.
    new = by_root if divided else number * shape.embedding if setting.full else 0
    here = before + new if before else arrived(layers)
    found.append(
        Moment(
            "the embedding's backward",
            {**base, "gradients": here + reduced + lookup, "activations": entry},
        )
    )
    if not offload:
        whole = gradient_bytes(shape, setting)
        temporary = whole if setting.optimizer == "adamw" else 0
        found.append(
            Moment(
                "the optimiser's step",
                {
                    "weights": weights,
                    "optimiser": state,
                    "gradients": whole // shares,
                    "buckets": kept_buckets,
                    "the step's temporary": temporary // shares,
                },
            )
        )
    return found


def gradients_before(shape: Shape, setting: Setting) -> int:
    """What the micro-batches before have left of gradients, as one GPU keeps them until the optimiser steps.

    ZeRO-3 has allocated its share from the start. ZeRO divides them each time, and so does the ``loop`` engine.
    Accelerate has FSDP send them with the last micro-batch alone (``no_sync``): until then each GPU keeps all of them,
    whole.
    """
    if setting.accumulation == 1 and not setting.divides_from_the_start:
        return 0
    whole = gradient_bytes(shape, setting)
    divides = ("zero2", "zero3", *(["fsdp"] if setting.sync_each_batch else []))
    if setting.sharding in divides and setting.gpus > 1:
        return 0 if setting.cpu_offload else whole // setting.gpus
    return whole


def bf16_copies(shape: Shape, setting: Setting) -> int:
    """Autocast's copies of the trained linear layers; an embedding that is only looked up has none."""
    if not (setting.autocast and setting.full):
        return 0
    linear = shape.layers * sum(each.inputs * each.outputs for each in shape.linears)
    return 2 * linear + copies_of_head(shape, setting)


def copies_of_head(shape: Shape, setting: Setting) -> int:
    """Autocast's copy of the output layer."""
    return 2 * shape.embedding if setting.autocast and setting.full and shape.family != "bert" else 0


def gathered_bytes(shape: Shape, setting: Setting) -> tuple[int, int]:
    """Of a model in shards: weights that are whole for the moment, and gradients on their way.

    The embedding and the output layer are gathered whole for the whole step; of the blocks the one that works and the
    one that comes next (Zhao et al., 2023, and PyTorch's ``fully_shard``).
    """
    trained = gradient_bytes(shape, setting)
    if setting.shares == 1:
        return 0, 0
    whole = weight_bytes(shape, setting)
    root = setting.weight * shape.root
    block = (whole - root) // shape.layers
    by_block = (trained - (setting.weight * shape.root if setting.full else 0)) // shape.layers
    return root + 2 * block, 2 * by_block


def bucket_bytes(shape: Shape, setting: Setting) -> tuple[int, int]:
    """Buffers for gradients on their way to other GPUs: in the backward pass, and what of them stays.

    DDP's hold every gradient. DeepSpeed's are allocated whole, however few gradients there are (its
    ``stage_1_and_2.py`` and ``stage3.py``): ZeRO-2 has two in each backward pass, one filled while the other is sent
    (``overlap_comm``), ZeRO-3 one for good.
    """
    if setting.gpus == 1:
        return 0, 0
    if setting.sharding == "ddp":
        return gradient_bytes(shape, setting), gradient_bytes(shape, setting)
    bucket = BUCKET * (setting.weight if setting.full else setting.size)
    return {"zero2": (2 * bucket, 0), "zero3": (bucket, bucket)}.get(setting.sharding, (0, 0))


def dequantised(shape: Shape, setting: Setting) -> int:
    """The largest linear layer of a block, made whole to be multiplied with."""
    if setting.method != "qlora":
        return 0
    return setting.size * max(each.inputs * each.outputs for each in shape.linears)


def need(shape: Shape, setting: Setting) -> Need:
    """What a training needs on one GPU: the largest of its :func:`moments`, and what it rests at."""
    found = moments(shape, setting)
    stays = {"weights", "optimiser", *(["gradients"] if setting.divides_from_the_start else [])}
    resting = sum(size for part, size in found[-1].parts.items() if part in stays)
    resting += bucket_bytes(shape, setting)[1]
    return Need(max(found, key=lambda moment: moment.total), found, resting, assumptions(shape, setting))


def assumptions(shape: Shape, setting: Setting) -> list[str]:
    """What the figures stand on, in words."""
    facts: list[tuple[bool, str]] = [
        (True, "bytes that the allocator hands out at most; the framework and the allocator's gaps come on top"),
        (True, f"micro-batches of {setting.batch_size} × {setting.seq_len} tokens, padding included"
         + (f", {setting.accumulation} of them a step" if setting.accumulation > 1 else "")),
        (not setting.full, f"adapters of rank {setting.rank} on {setting.targets}, in float32, without dropout"),
        (setting.autocast and setting.full,
         f"weights in float32; matrix products read {setting.dtype} copies (autocast)"),
        (setting.autocast and not setting.full, f"adapters multiply in {setting.dtype} (autocast)"),
        (setting.method == "qlora", f"nf4, double quantisation, blocks of 64; the rest in {setting.dtype}"),
        (
            setting.fused_loss,
            f"the loss in pieces of {setting.loss_chunk} positions, as ftdocs train makes it"
            if setting.loss_chunk
            else "the loss in pieces, as Liger Kernel cuts them",
        ),
        (setting.optimizer == "adamw", "AdamW of the foreach kind, with one more temporary of the gradients' size"),
        (setting.optimizer.startswith("paged"), "the optimiser's pages lie in the CPU's memory"),
        (setting.shares > 1, "one unit a block, and one for embedding, output layer and norm, which stays whole"),
        (setting.sharding == "ddp" and setting.gpus > 1, "DDP's buckets hold the gradients a second time"),
        (
            setting.accumulation > 1
            and setting.sharding == "fsdp"
            and setting.gpus > 1
            and not setting.sync_each_batch,
            "gradients whole on each GPU until the last micro-batch of a step, as Accelerate has it; its"
            " sync_each_batch divides them each time",
        ),
        (
            setting.shares > 1 and setting.autocast and setting.full,
            "float32 weights gathered as they are, as the loop engine does; Accelerate gathers bfloat16, which is less",
        ),
        (
            setting.steps_copies and not setting.cpu_offload,
            "DeepSpeed's float32 weights beside what the optimiser keeps on the GPU:"
            f" {state_bytes(shape, setting) / shape.parameters:.3g} bytes a parameter, divided",
        ),
        (
            shape.family == "gemma2" and setting.attention == "sdpa",
            "Transformers' Gemma 2 has no sdpa: this is what flash needs; eager needs more",
        ),
        (
            setting.sharding == "zero2" and setting.gpus > 1,
            "two buckets of DeepSpeed's default size, 5e8 numbers (overlap_comm); its reduce_bucket_size is that",
        ),
        (
            setting.sharding == "zero3" and setting.gpus > 1,
            "a bucket of DeepSpeed's default size, 5e8 numbers; its reduce_bucket_size is that",
        ),
        (setting.cpu_offload, "the optimiser steps on the CPU"),
        (shape.family == "bert", "a classifier of two classes"),
        (shape.part, "the language part alone, with no images in its rows: the part that sees comes on top"),
    ]  # fmt: skip
    return [text for holds, text in facts if holds]


def disk_bytes(shape: Shape, setting: Setting, checkpoints: int = 2) -> dict[str, int]:
    """Bytes on disk of a run: base model in bfloat16, checkpoints, tuned weights.

    A checkpoint holds the trained weights and AdamW's two moments, all float32: 12 bytes for a parameter.
    """
    trained = trained_parameters(shape, setting)
    return {
        "base model": 2 * shape.parameters,
        "checkpoints": checkpoints * 12 * trained,
        "result": 4 * trained,
    }


# A reader's own rule may stand beside it: these three are common.
RULES: dict[str, Callable[[Shape, Setting], int]] = {
    "weights only": lambda shape, setting: weight_bytes(shape, setting),
    "weights × 4 (Accelerate's estimate)": lambda shape, setting: 4 * weight_bytes(shape, setting),
    "18, 8 or 2 bytes a parameter": lambda shape, setting: (
        (18 if setting.master_weights else 8 if setting.full else 2) * shape.parameters
    ),
}
