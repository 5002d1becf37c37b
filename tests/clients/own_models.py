"""Models as people write them: what is unusual and right, and mistakes, each with words of the refusal that it gets."""

import os
import random
import threading
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import torch
import torchvision
from opacus.layers import DPLSTM
from torch import nn
from torch.nn import functional

CLASSES = 10
"""Images are (1, 8, 8)."""


def plain(*more, width=CLASSES):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, width), *more)


class Own(nn.Module):
    """A model with one thing in it that is somebody's own."""

    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        return self.net(x)


def forward(function, base=Own):
    """A model whose forward is `function(self, x)`."""
    return type("Mine", (base,), {"forward": function})()


# -- right -------------------------------------------------------------------------------------------------------


class OnlyHead(Own):
    def train(self, mode=True):
        super().train(mode)
        self.net[0].eval()
        return self


class Gated(nn.Module):
    """Attention over places, behind a gain that begins at 0."""

    def __init__(self):
        super().__init__()
        self.stem, self.attention = nn.Conv2d(1, 8, 2, 2), nn.MultiheadAttention(8, 2, batch_first=True)
        self.gain, self.head = nn.Parameter(torch.zeros(())), nn.Linear(8, CLASSES)

    def forward(self, x):
        places = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((places + self.gain * self.attention(places, places, places)[0]).mean(1))


class Rows(nn.Module):
    """An LSTM over an image's rows."""

    def __init__(self):
        super().__init__()
        self.rows, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.rows(x[:, 0])[0][:, -1])


def zero_head():
    model = plain()
    nn.init.zeros_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    return model


GOOD = {
    "a head of zeros": zero_head,
    "a branch behind a gain of zero": Gated,
    "an LSTM": Rows,
    "dropout": lambda: plain(nn.Dropout(), nn.Linear(CLASSES, CLASSES)),
    "train leaves a part in eval mode": OnlyHead,
    "cosines": lambda: forward(lambda self, x: functional.normalize(self.net(x), dim=1)),
    "a ReLU at the end, as SqueezeNet's": lambda: plain(nn.ReLU()),
    "one layer twice": lambda: forward(lambda self, x: self.net(x) + self.net(-x)),
    "spectral norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10))),
    "in place, behind the first layer": lambda: nn.Sequential(plain()[0], nn.ReLU(inplace=True), *plain()[2:]),
    "channels last": lambda: plain().to(memory_format=torch.channels_last),
    "a head that is not used": lambda: nn.Sequential(OrderedDict([("a", plain()), ("b", nn.Identity())])),
    "weights of a transformer": lambda: nn.Sequential(
        nn.Flatten(2), nn.TransformerEncoderLayer(64, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(64, 10)
    ),
}


# -- wrong -------------------------------------------------------------------------------------------------------

NET = plain()


class Listed(nn.Module):
    """Layers in a plain list, which torch does not find."""

    def __init__(self, registered):
        super().__init__()
        self.layers = [nn.Flatten(), nn.Linear(64, 16)]
        self.head = nn.Linear(16, CLASSES) if registered else lambda x: x

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class ExtraState(Own):
    def get_extra_state(self):
        return {"made": "today"}

    def set_extra_state(self, state):
        pass


class OtherNames(Own):
    def state_dict(self, *arguments, **options):
        return {f"module.{name}": value for name, value in super().state_dict(*arguments, **options).items()}


class Locked(Own):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class NoSelf(Own):
    def train(self, mode=True):
        super().train(mode)


class AlwaysTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(plain()[0], nn.BatchNorm2d(8), *plain()[1:])

    def train(self, mode=True):
        self.training = mode
        return self

    def forward(self, x):
        return self.net(x)


class Remembers(Rows):
    """Its hidden state goes on from batch to batch, with its graph."""

    state = None

    def forward(self, x):
        before = self.state if self.state is not None and self.state[0].shape[1] == len(x) else None
        seen, self.state = self.rows(x[:, 0], before)
        return self.head(seen[:, -1])


class OverTheBatch(nn.Module):
    """Attention that takes the images of a batch for a sequence, at once or behind a gain that begins at 0."""

    def __init__(self, gain):
        super().__init__()
        self.stem, self.attention = plain(width=8), nn.MultiheadAttention(8, 2)
        self.gain, self.head = nn.Parameter(torch.tensor(gain)), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.gain * self.attention(x, x, x)[0])


class DetachedBody(nn.Module):
    """Most of it is never trained."""

    def __init__(self):
        super().__init__()
        self.body, self.head = plain(width=99), nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(x.flatten(1)) + self.body(x).detach().mean(1, keepdim=True)


class Global(Own):
    """Sets what holds for the whole process."""

    def forward(self, x):
        torch.set_num_threads(3)
        torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(True)
        torch.set_default_dtype(torch.float64)
        raise KeyError("width")


class Constant(Own):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(1, device="meta")

    def forward(self, x):
        return self.net(x - self.mean)


class Auxiliary(Own):
    def forward(self, x):
        return (self.net(x), self.net(-x)) if self.training else self.net(x)


def dtype_of(dtype):
    return lambda: plain().to(dtype)


def complex_weights():
    model = plain()
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return model


def broken_weights():
    model = plain()
    model[3].bias.data[2] = torch.nan
    return model


def counted(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return self.net(x) * self.calls


def features_kept(self, x):
    self.seen = self.net[0](x)
    return self.net[1:](self.seen)


def quit_at_once(self, x):
    raise SystemExit(0)


WRONG = {
    # what is given in the place of a model
    "the class": (lambda: Own, r"found the class Own; call it: Own\(...\)"),
    "a function": (lambda: plain().forward, "found method; a torch.nn.Module is needed"),
    "the weights": (lambda: plain().state_dict(), "found OrderedDict; a torch.nn.Module"),
    "a compiled model": (lambda: torch.compile(plain()), "torch.compile.*give the model itself"),
    # weights
    "lazy layers": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "lazy weights.*run the model once"),
    "no weights": (nn.Flatten, "no weights to train"),
    "dropout alone": (lambda: nn.Sequential(nn.Dropout(), nn.Flatten()), "no weights to train"),
    "all layers in a list": (lambda: Listed(False), "no weights to train.*nn.ModuleList"),
    "some layers in a list": (lambda: Listed(True), "2 weight tensors that are not its own.*nn.ModuleList"),
    "another model's layers": (lambda: forward(lambda self, x: NET(x) + self.net(x)), "4 weight tensors that are not"),
    "all frozen": (lambda: plain().requires_grad_(False), "all 4 weight tensors have requires_grad False"),
    "half precision": (dtype_of(torch.float16), r"found torch.float16 in the weights 0.weight.*model.float\(\)"),
    "bfloat16": (dtype_of(torch.bfloat16), r"found torch.bfloat16.*model.float\(\)"),
    "double precision": (dtype_of(torch.float64), r"found torch.float64.*model.float\(\)"),
    "complex weights": (complex_weights, "found torch.complex64 in the weights phase; float32 is needed"),
    "no memory": (lambda: plain().to("meta"), "weights on meta; one device is needed, with memory"),
    "weights that are not finite": (broken_weights, "not finite in the weights 3.bias; initialise"),
    # being kept and copied
    "extra state": (ExtraState, "its state_dict has '_extra_state' of type dict; tensors alone are kept"),
    "other names": (OtherNames, "its weights cannot be saved and loaded again: RuntimeError"),
    "a lock": (Locked, "the model cannot be copied: TypeError.*no open files, locks"),
    "keeps its features": (
        lambda: forward(features_kept),
        r"after a step in train mode the model cannot be copied.*nothing but x.detach\(\)",
    ),
    "train returns nothing": (NoSelf, "its method train returned NoneType; an own one ends with `return self`"),
    # images of the task's shape
    "colour": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), *plain()[1:]),
        "it failed on images of shape .*1 channels.*ta",
    ),
    "another size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "mat1 and mat2.*AdaptiveAvgPool2d"),
    "small images": (
        lambda: nn.Sequential(nn.MaxPool2d(4), nn.MaxPool2d(4), nn.Conv2d(1, 10, 1), nn.Flatten()),
        "too small.*fewer strides and poolings",
    ),
    "one place left": (
        lambda: nn.Sequential(nn.AvgPool2d(8), nn.InstanceNorm2d(1), nn.Flatten(), nn.Linear(1, 10)),
        "more than 1 spatial element.*fewer poolings",
    ),
    "a constant elsewhere": (Constant, "in eval mode it failed.*register_buffer"),
    "two arguments": (lambda: forward(lambda self, x, mask: self.net(x)), "missing 1 required.*takes the images, and"),
    "one size of batch": (
        lambda: forward(lambda self, x: self.net(x.view(2, 1, 8, 8))),
        r"x.flatten\(1\), x.size\(0\)",
    ),
    "ends the process": (lambda: forward(quit_at_once), "in eval mode it failed on .*SystemExit: 0"),
    # what comes back
    "nothing": (
        lambda: forward(lambda self, x: None),
        "it gave NoneType; one tensor of logits.*return it from forward",
    ),
    "a tuple": (lambda: forward(lambda self, x: (self.net(x), x)), r"it gave tuple of 2; .*return output\[0\]"),
    "a list": (lambda: forward(lambda self, x: [x, self.net(x)]), "it gave list of 2; one tensor"),
    "a dictionary": (
        lambda: forward(lambda self, x: {"out": self.net(x)}),
        "it gave dict of out; .*the entry that holds",
    ),
    "an object": (lambda: forward(lambda self, x: SimpleNamespace(logits=self.net(x))), "return its .logits"),
    "auxiliary outputs": (Auxiliary, "in train mode it gave tuple of 2"),
    "GoogLeNet's": (
        lambda: nn.Sequential(
            nn.Upsample(32), nn.Conv2d(1, 3, 1), torchvision.models.googlenet(num_classes=10, init_weights=False)
        ),
        "in train mode it gave GoogLeNetOutputs of 3; .*without auxiliary outputs",
    ),
    "halves": (lambda: forward(lambda self, x: self.net(x).half()), r"gave torch.float16 of shape \(2, 10\); float32"),
    "doubles": (lambda: forward(lambda self, x: self.net(x).double()), "gave torch.float64 of shape"),
    "the class of each": (lambda: forward(lambda self, x: self.net(x).argmax(1)), "torch.int64.*not the class"),
    "a mask": (lambda: forward(lambda self, x: self.net(x) > 0), "gave torch.bool of shape"),
    "places of one": (lambda: plain(nn.Unflatten(1, (10, 1, 1))), r"of shape \(2, 10, 1, 1\).*end with .flatten\(1\)"),
    "a map": (lambda: nn.Conv2d(1, 10, 3), r"of shape \(2, 10, 6, 6\); \(2, 10\) are needed: pool over places"),
    "turned": (lambda: forward(lambda self, x: self.net(x).T), r"return logits.T"),
    "one output": (lambda: plain(width=1), r"of shape \(2, 1\).*one output for each of the 10 classes"),
    "no axis of classes": (lambda: forward(lambda self, x: self.net(x)[:, 0]), "one output for each of the 10 classes"),
    "1000 classes": (lambda: plain(width=1000), r"the last layer gives 1000 and must give 10: nn.Linear\(..., 10\)"),
    "flattened over the batch": (
        lambda: nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)), nn.Linear(128, 10)),
        r"of shape \(1, 10\).*keep images apart",
    ),
    "rows of another length": (lambda: forward(lambda self, x: self.net(x).view(-1, 5)), "keep images apart"),
    # values
    "a logarithm": (lambda: forward(lambda self, x: self.net(x).log()), "logits are not finite; bound what is divided"),
    "a division": (lambda: forward(lambda self, x: self.net(x) / self.net(x).relu()), "logits are not finite"),
    "a softmax": (lambda: plain(nn.Softmax(1)), "its last layer is a softmax; return the logits: remove the softmax"),
    "a log-softmax": (lambda: plain(nn.LogSoftmax(1)), "its last layer is a log-softmax; return the logits: remove"),
    "a sigmoid": (lambda: plain(nn.Sigmoid()), "its last layer is a sigmoid; return the logits: remove the sigmoid"),
    "a sigmoid of large numbers": (lambda: forward(lambda self, x: (99 * self.net(x)).sigmoid()), "layer is a sigmoid"),
    "a sigmoid of one's own": (
        lambda: forward(lambda self, x: 1 / (1 + (-self.net(x)).exp())),
        "its last layer is a sigmoid",
    ),
    "a sigmoid in train mode": (
        lambda: forward(lambda self, x: self.net(x).sigmoid() if self.training else self.net(x)),
        "in train mode its last layer is a sigmoid",
    ),
    "percentages": (lambda: forward(lambda self, x: 100 * self.net(x).softmax(1)), "its last layer is a softmax; ret"),
    "bits": (lambda: forward(lambda self, x: self.net(x).softmax(1).log2()), "its last layer is a log-softmax; retur"),
    "a softmax over the batch": (
        lambda: plain(nn.Softmax(0)),
        r"its last layer is a softmax over the batch \(axis 0\)",
    ),
    "a log-sigmoid": (lambda: plain(nn.LogSigmoid()), "its last layer is a log-sigmoid; return the logits: remove the"),
    "a softplus": (lambda: plain(nn.Softplus()), "its last layer is a softplus; return the logits: remove the"),
    "a softmax in eval mode": (
        lambda: forward(lambda self, x: self.net(x) if self.training else self.net(x).softmax(1)),
        "its last layer is a softmax",
    ),
    "a softmax in train mode": (
        lambda: forward(lambda self, x: self.net(x).softmax(1) if self.training else self.net(x)),
        "in train mode its last layer is a softmax",
    ),
    # gradients
    "no_grad": (lambda: forward(torch.no_grad()(Own.forward)), "no gradient reaches the images"),
    "detached": (lambda: forward(lambda self, x: self.net(x.detach())), "no gradient reaches the images.*leave out"),
    "past its stem": (
        lambda: forward(lambda self, x: self.net[1:](self.net[0](x).detach())),
        "no gradient reaches the",
    ),
    "through numpy": (
        lambda: forward(lambda self, x: self.net(torch.from_numpy(x.detach().numpy() * 2))),
        "no gradient reaches the images",
    ),
    "numpy's own": (lambda: forward(lambda self, x: self.net(torch.from_numpy(x.numpy()))), "in eval mode it failed"),
    "rounded": (lambda: forward(lambda self, x: self.net(x.round())), "the gradient for the images is zero"),
    "black and white": (lambda: forward(lambda self, x: self.net((x > 0).float())), "no gradient reaches the images"),
    "a root of zero": (lambda: forward(lambda self, x: self.net(x + (0 * x).sqrt())), "its gradient is not finite"),
    "a detached body": (DetachedBody, "in train mode no gradient reaches 99% of the weights .*, body.0.weight, body.0"),
    "no gradient in train mode": (
        lambda: forward(lambda self, x: self.net(x).detach() if self.training else self.net(x)),
        "in train mode no gradient reaches the weights",
    ),
    # in place, in two ways, and over the batch
    "centred in place": (lambda: forward(lambda self, x: self.net(x.sub_(0.5))), "changes the images .*in place"),
    "a first layer in place": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), plain()),
        "inplace=False in the first layer",
    ),
    "changed in place": (
        lambda: forward(lambda self, x: self.net(x.sigmoid().mul_(2)) + self.net(x).sigmoid_().exp().log_()),
        "its gradient cannot be computed: .*inplace=False in its layers",
    ),
    "dropout in eval mode": (
        lambda: forward(lambda self, x: self.net(functional.dropout(x))),
        "the same images in two ways; give functional.dropout training=self.training",
    ),
    "a count": (lambda: forward(counted), "the same images in two ways"),
    "centred by the batch": (
        lambda: forward(lambda self, x: self.net(x - x.mean(0))),
        "changes with the others; take no",
    ),
    "scaled by the batch": (lambda: forward(lambda self, x: self.net(x / x.max())), "changes with the others"),
    "whatever came before": (
        lambda: forward(lambda self, x: self.net(x.cumsum(0))),
        "an image alone is answered otherw",
    ),
    "batch norm's function": (
        lambda: forward(lambda self, x: functional.batch_norm(self.net(x), None, None, training=True)),
        "changes with the others.*batch norm with training=True",
    ),
    "batch norm without statistics": (
        lambda: plain(nn.BatchNorm1d(10, affine=False, track_running_stats=False)),
        "batch norm with training=True or without running statistics",
    ),
    "batch norm that stays in train mode": (AlwaysTraining, "in eval mode the answer for one image changes"),
    "attention over the batch": (lambda: OverTheBatch(1.0), "in eval mode the answer for one image changes"),
    "the same behind a gain of zero": (lambda: OverTheBatch(0.0), "in eval mode the answer for one image changes"),
    "its last batch": (Remembers, "in two ways|cannot be copied|answered otherwise"),
}


# -- private ------------------------------------------------------------------------------------------------------


def grouped(*more):
    """A model that is trained privately as it stands."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), *more, nn.Flatten(), nn.Linear(288, CLASSES)
    )


class Grouped(nn.Module):
    """The same, with room for something of somebody's own."""

    def __init__(self):
        super().__init__()
        self.net = grouped()

    def forward(self, x):
        return self.net(x)


class Reused(nn.Module):
    """A layer's weight is used past the layer too, which the hooks do not see."""

    def __init__(self):
        super().__init__()
        self.net, self.turn, self.head = grouped()[:4], nn.Linear(288, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.net(x)
        return self.head(self.turn(x) + functional.linear(x.square(), self.turn.weight))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.turn, self.head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.turn(self.turn(self.stem(x.flatten(1))).tanh()).tanh())


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.two.weight = self.one.weight
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x.flatten(1))).tanh()).tanh())


class MeanKept(Grouped):
    """A running mean in a plain attribute, which no layer's name gives away."""

    mean = 0.0

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return self.net(x - self.mean)


class FrozenConstant(Grouped):
    """What a buffer is for, where no buffer may be."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.full((), 0.3), requires_grad=False)

    def forward(self, x):
        return self.net(x - self.mean)


class FrozenMeanKept(FrozenConstant):
    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean())
        return self.net(x - self.mean)


class WithSpare(Grouped):
    """A head that nothing goes through."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(3, 3)


def in_training(function):
    """A model that does `function(x)` to the images, in train mode alone."""
    return lambda: forward(lambda self, x: self.net(function(x) if self.training else x), Grouped)


class Lazy(Grouped):
    """Centres by the mean of the first batch that it is trained on."""

    mean = None

    def forward(self, x):
        if self.training and self.mean is None:
            self.mean = float(x.mean())
        return self.net(x - (self.mean or 0.0))


class LazyFrozen(FrozenConstant):
    begun = False

    def forward(self, x):
        if self.training and not self.begun:
            self.mean.data.copy_(x.mean())
            self.begun = True
        return self.net(x - self.mean)


class Queue(Grouped):
    """What it keeps it uses after a while."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen = [*self.seen, x.detach().mean(0)][-99:]
            if len(self.seen) > 80:
                x = x - torch.stack(self.seen).mean(0)
        return self.net(x)


class Hidden:
    """Something that is no layer and counts what it has seen."""

    def __init__(self):
        self.parts = {"sums": [0.0]}


class InAnObject(Grouped):
    def __init__(self):
        super().__init__()
        self.hidden = Hidden()

    def forward(self, x):
        if self.training:
            self.hidden.parts["sums"].append(float(x.sum()))
        return self.net(x)


class MixesGradients(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient - gradient.mean(0) if len(gradient) > 2 else gradient


class GaussianNoise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) if self.training else x


class PrivateRows(nn.Module):
    """An LSTM of Opacus's, which notes how long its input is."""

    def __init__(self):
        super().__init__()
        self.rows, self.head = DPLSTM(8, 16, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.rows(x[:, 0])[0][:, -1])


def at_times(draw):
    """Mixing that `draw` switches on."""
    return in_training(lambda x: x - x.mean(0) if draw() else x)


PRIVATE_GOOD = {
    "noise for each record": lambda: grouped(GaussianNoise()),
    "dropout of channels": lambda: grouped(nn.Dropout2d()),
    "stochastic depth by record": lambda: grouped(torchvision.ops.StochasticDepth(0.5, "row")),
    "an LSTM for it": PrivateRows,
    "group norm": grouped,
    "dropout": lambda: grouped(nn.Dropout()),
    "layer norm": lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, CLASSES)),
    "instance norm": lambda: nn.Sequential(plain()[0], nn.InstanceNorm2d(8, affine=True), *plain()[1:]),
    "a frozen stem": lambda: nn.Sequential(grouped()[0].requires_grad_(False), *grouped()[1:]),
    "a constant": FrozenConstant,
}
PRIVATE_WRONG = {
    "batch norm": (
        lambda: nn.Sequential(plain()[0], nn.BatchNorm2d(8), *plain()[1:]),
        r"found BatchNorm2d; .*it mixes records: take group norm, nn.GroupNorm\(groups, channels\)",
    ),
    "frozen batch norm": (
        lambda: nn.Sequential(plain()[0], nn.BatchNorm2d(8, affine=False), *plain()[1:]),
        "found BatchNorm2d; .*it mixes records",
    ),
    "an LSTM": (Rows, "found LSTM; .*take DPLSTM, DPGRU or DPRNN of opacus.layers"),
    "attention over places": (Gated, "found MultiheadAttention; .*opacus.layers.DPMultiheadAttention"),
    "instance norm that counts": (
        lambda: nn.Sequential(plain()[0], nn.InstanceNorm2d(8, track_running_stats=True), *plain()[1:]),
        "found InstanceNorm2d with running statistics.*track_running_stats=False",
    ),
    "a buffer": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(plain()[0]), *plain()[1:]),
        r"found the buffers 0.parametrizations.*requires_grad=False\)",
    ),
    "centred by the batch": (in_training(lambda x: x - x.mean(0)), "in train mode the answer for one record changes"),
    "scaled by the batch": (in_training(lambda x: x / x.std()), "in train mode the answer for one record changes"),
    "batch norm's function": (
        in_training(lambda x: functional.batch_norm(x, None, None, training=True)),
        "it mixes records, and no noise that is planned for one record covers that",
    ),
    "counts the batch": (in_training(lambda x: x / len(x)), "in train mode the answer for one record changes"),
    "mixup": (in_training(lambda x: 0.7 * x + 0.3 * x.roll(1, 0)), "in train mode the answer for one record changes"),
    "mixing at times": (
        at_times(lambda: torch.rand(1) < 1e-6),
        "one number for a whole batch, with torch's rand of sh",
    ),
    "at times of Python's": (at_times(lambda: random.random() < 1e-6), "for a whole batch, with Python's random: what"),
    "at times of numpy's": (at_times(lambda: np.random.rand() < 1e-6), "for a whole batch, with numpy.random: what"),
    "at times of the system's": (
        at_times(lambda: os.urandom(1)[0] < 128),
        "the answer for one record changes with|what it says has changed",
    ),
    "mixup of others": (
        in_training(lambda x: torch.lerp(x, x[torch.randperm(len(x))], 1e-6)),
        "torch's randperm of shape .*no mixup",
    ),
    "stochastic depth by batch": (
        lambda: grouped(torchvision.ops.StochasticDepth(0.5, "batch")),
        r"torch's bernoulli of shape \(1, 1, 1, 1\)",
    ),
    "mixing in larger batches": (in_training(lambda x: x - x.mean(0) if len(x) > 4 else x), "answer for one record"),
    "mixing in batches of 64": (in_training(lambda x: x - x.mean(0) if len(x) > 63 else x), "answer for one record"),
    "mixed gradients": (
        lambda: forward(lambda self, x: self.net[3:](MixesGradients.apply(self.net[:3](x))), Grouped),
        "in train mode the answer for one record changes",
    ),
    "the first batch's mean": (
        Lazy,
        "keeps something of the records that it has seen in train mode.*: mean has changed",
    ),
    "the same in a frozen weight": (LazyFrozen, "keeps something of the records .*: (mean|begun) has changed"),
    "a queue": (Queue, "keeps something of the records .*: seen has changed"),
    "sums in an object": (InAnObject, "keeps something of the records .*: hidden has changed"),
    "a running mean": (MeanKept, "keeps something of the records that it has seen in train mode"),
    "a running mean that is frozen": (FrozenMeanKept, "keeps something of the records that it has seen"),
    "ReLU in place": (
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(inplace=True), *grouped()[3:]),
        "the first step of private training, mode 'hooks' .*fails: .*write inplace=False in 2",
    ),
    "a weight past its layer": (Reused, "in mode 'hooks' of .*not those of its records.*call each layer its"),
    "a weight not used": (WithSpare, "no record's loss depends on the weights spare.w"),
}
GHOST_WRONG = {
    "one layer twice": (Twice, "mode 'ghost' .*or take mode = 'hooks'"),
    "two layers with one weight": (Tied, "mode 'ghost' .*or take mode = 'hooks'"),
}
