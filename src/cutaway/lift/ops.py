"""What lifting knows of torch's operations: which are linear in an activation, and of what sort the others are.

Names are those of torch functions and ATen ops alike, without underscores around them. An op that stands in no table is
nonlinear and opaque: it becomes a node of its own, so a network with unknown ops still lifts.
"""

from __future__ import annotations

from ..graph import Op
from ..run.structure import Ref, swap
from ..run.tape import Tape

LAYOUT = frozenset(
    """view reshape transpose permute T mT H t getitem select slice narrow split split_with_sizes chunk unbind cat
    concat concatenate stack hstack vstack squeeze unsqueeze flatten unflatten expand expand_as repeat repeat_interleave
    contiguous clone movedim moveaxis swapaxes swapdims tile roll flip pad constant_pad_nd to to_copy type type_as float
    half double bfloat16 alias detach as_strided tensor_split unfold fold pixel_shuffle pixel_unshuffle index_select
    gather take_along_dim view_as reshape_as identity data unsafe_view unsafe_split unsafe_chunk copy index
    channel_shuffle index_put setitem scatter select_scatter slice_scatter as_strided_scatter rot90 tril triu diagonal
    requires_grad index_add scatter_add copy_ lift_fresh numpy_T pack_padded_sequence pad_packed_sequence""".split()
)
FITTING = frozenset("pad constant_pad_nd getitem slice narrow contiguous clone".split())  # what makes a skip fit
PAIRING = frozenset("view_as_complex view_as_real real imag complex".split())  # numbers as complex ones, and back
ADDITIVE = frozenset("add sub radd rsub iadd isub neg sum mean cumsum nansum diff".split())
SCALING = frozenset(
    "mul div rmul imul idiv truediv itruediv where masked_fill rtruediv multiply divide addcmul lerp".split()
)
SUMS = frozenset("add sub radd rsub iadd isub sum cumsum addcmul lerp addmm baddbmm addbmm addmv".split())
CONTRACTION = frozenset(
    """linear matmul rmatmul mm bmm addmm baddbmm addbmm einsum tensordot bilinear mv addmv dot inner outer
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution conv_tbc""".split()
)
CONVOLUTION = frozenset(name for name in CONTRACTION if name.startswith("conv"))
GROUPED = frozenset("grouped_mm grouped_mm_fallback".split())  # rows by group, each with weights of its own
MIXING = CONTRACTION - CONVOLUTION
CHOICES = frozenset("topk argmax max sort argsort kthvalue".split())
SOLVING = frozenset("linalg_solve_triangular solve_triangular linalg_solve linalg_inv inverse".split())
POOLING = frozenset(
    """avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean_pool
    interpolate upsample upsample_nearest2d upsample_bilinear2d""".split()
)
ELEMENTWISE = frozenset(
    """relu relu6 gelu silu sigmoid tanh exp log log1p expm1 pow sqrt rsqrt abs clamp clamp_min clamp_max leaky_relu elu
    selu celu softplus mish hardswish hardtanh hardsigmoid prelu rrelu sin cos erf square reciprocal maximum minimum
    logsigmoid log_sigmoid threshold softsign sign heaviside round floor glu hardshrink softshrink tanhshrink sinc atan
    bernoulli rpow ipow nan_to_num""".split()
)
SPREADS = frozenset("norm vector_norm linalg_vector_norm var std var_mean std_mean".split())  # of many numbers, one
PRODUCTS = SCALING | frozenset("outer".split())
NORMS = frozenset(
    "layer_norm rms_norm group_norm instance_norm local_response_norm native_layer_norm native_group_norm normalize "
    "batch_norm native_batch_norm cudnn_batch_norm".split()
)
SOFTMAX = frozenset("softmax safe_softmax log_softmax".split())
RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split())
# Ops that look at the shape of what they are given, never at its numbers.
SHAPE_ONLY = frozenset(
    """new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like full_like empty_like rand_like randn_like
    randint_like zeros ones empty eye""".split()
)
SDPA = "scaled_dot_product_attention"


def sort_name(op: Op) -> str:
    """The name of an op without the marks of private, unsafe and in-place variants.

    An einsum of one operand contracts nothing: it rearranges and sums. A maximum of two tensors chooses no place.
    """
    if op.name in ("max", "min") and len(op.inputs) == 2:
        return f"{op.name}imum"
    return "sum" if op.name == "einsum" and len(op.inputs) == 1 else op.name.strip("_")


def channels(op: Op) -> int:
    """The axis of a contraction's result along which its outputs lie."""
    return 1 if sort_name(op) in CONVOLUTION and sort_name(op) != "conv_tbc" else -1


def active(op: Op, activations: set[int]) -> list[int]:
    """The op's inputs that are activations."""
    return [value for value in op.inputs if value in activations]


def is_linear(tape: Tape, op: Op, activations: set[int]) -> bool:
    """Whether the op is linear (affine) in its activations taken together, everything else held fixed."""
    name = sort_name(op)
    moving = active(op, activations)
    if name in LAYOUT | PAIRING or name in ADDITIVE or name in POOLING:
        return not (name in ("index", "getitem", "gather") and len(moving) > 1)
    if name in ("dropout", "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d"):
        return True  # the mask is drawn, not computed from the value
    if name in ("div", "truediv", "divide", "idiv", "itruediv"):
        return len(moving) == 1 and _first(tape, op) == moving[0]
    if name == "rtruediv":
        return False
    if name in SCALING or name in CONTRACTION:
        return len(moving) == 1 and _times(tape, op, moving[0]) == 1
    if name in ("batch_norm", "native_batch_norm"):
        return not _trains(tape, op)
    return False


def is_product(tape: Tape, op: Op, activations: set[int]) -> bool:
    """Whether the op multiplies or divides activations elementwise."""
    return sort_name(op) in PRODUCTS and not is_linear(tape, op, activations)


def _times(tape: Tape, op: Op, value: int) -> int:
    """How often an op reads a value: twice in x * x."""
    call = tape.calls[op.index]
    if call.slots is not None:
        return sum(source == value for _, source in call.slots)
    found: list[int] = []
    swap((call.args, call.kwargs), Ref, lambda ref: found.append(ref.id))
    return found.count(value)


def _first(tape: Tape, op: Op) -> int:
    call = tape.calls[op.index]
    first = call.args[0] if call.args else None
    return first.id if isinstance(first, Ref) else -1


def _trains(tape: Tape, op: Op) -> bool:
    call = tape.calls[op.index]
    flag = call.kwargs.get("training", call.args[5] if len(call.args) > 5 else False)
    return bool(flag)
