"""What a `Distiller` is to do, written out as a plain loop that shares nothing with kdkit but the losses themselves.

`drawn` draws words from a seed, `by_kdkit` and `by_hand` train the same nets from them, in float64.
"""

import copy
import math
import random

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit.registry import LOSSES

BATCH, SAMPLES, CLASSES, DECAY = 6, 21, 5, 0.9
SOFTENED = {"kd": 4.0, "dkd": 4.0, "dml": 1.0, "dist": 4.0}
ALIKE = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
OPTIMIZERS = [
    {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "adamw", "weight_decay": 0.05},
]


class Net(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), norm(width), nn.Tanh())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), nn.Tanh())
        self.fc = nn.Linear(2 * width, CLASSES)

    def forward(self, x):
        return self.told(x)["logits"]

    def told(self, x):
        first = self.layer1(x)
        second = self.layer2(first)
        embedding = second.mean((2, 3))
        return {"layer1": first, "layer2": second, "embedding": embedding, "logits": self.fc(embedding)}


# -- what is trained ---------------------------------------------------------------------------------------------------


def moving(r, base):
    """A number, or one of its schedules."""
    words = [
        {"linear": [base, base / 3]},
        {"cosine": [base, base / 5]},
        {"multistep": {"start": base, "at": [0.3, 0.7]}},
        {"step": {"start": base, "every": 1}},
        {"exp": {"start": base, "rate": 0.1, "by": r.choice(["epoch", "step"])}},
    ]
    return r.choice([base, base, *words])


def drawn(seed):
    """The words of a random run."""
    r = random.Random(seed)
    teachers, students = ["teacher", "other"][: r.choice([1, 2])], ["a", "b", "c"][: r.choice([1, 2, 3])]
    words = {
        "seed": seed,
        "epochs": r.choice([2, 3]),
        "norm": r.choice([nn.BatchNorm2d, nn.Identity]),
        "widths": {name: r.choice([2, 3, 4]) for name in teachers + students},
        "teachers": teachers,
        "students": students,
        "optimizer": r.choice(OPTIMIZERS),
        "lr": moving(r, 2e-3),
        "own": {r.choice(students): ({"name": "adam"}, moving(r, 2e-3))} if r.random() < 0.4 else {},
        "accumulate": r.choice([1, 1, 2, 3]),
        "clip": r.choice([None, 0.5]),
        "slow": r.random() < 0.4,
        "stages": [],
    }
    words["sequential"] = len(students) > 1 and words["accumulate"] == 1 and r.random() < 0.5
    if r.random() < 0.4:
        first = [f"{name}.layer1" for name in students if r.random() < 0.6] or students[:1]
        words["stages"] = [("first", {"to": 1}, first), ("second", {"from": 1}, r.choice([None, students[-1:]]))]
    words["edges"] = [{"loss": "ce", "name": "ce", "weight": moving(r, 1.0)}]
    words["edges"] += [_edge(r, f"edge{i}", words) for i in range(r.choice([1, 2, 3]))]
    return words


def _edge(r, name, words):
    teachers, students = words["teachers"], words["students"]
    edge = {"name": name, "weight": moving(r, 0.7)}
    kind = r.choice(["logits", "embedding", "maps", *["peers"] * (len(students) > 1), *["slow"] * words["slow"]])
    if kind == "peers":
        edge |= {"loss": r.choice(["dml", "kd", "mse", "rkd"]), "among": students}
    else:
        several = ["kd", "dkd", "dist", "mse", "dml"]
        of = {"logits": several, "embedding": ["pkt", "rkd", "cosine", "cc"], "maps": ["at", "nst", "hint", "sp"]}
        edge["loss"] = r.choice(of.get(kind, ["mse", "kd", "pkt"]))
        edge["source"] = ["slow"] if kind == "slow" else [r.choice(teachers)]
        edge["target"] = students[:1] if kind == "slow" else r.choice([students, [r.choice(students)]])
        if kind == "logits":
            edge["source"] = teachers
    if len(edge.get("source", students)) > 1 and edge["loss"] in {*SOFTENED, "mse"}:
        edge["ensemble"] = r.choice([None, "arithmetic", "geometric"])
        if edge["ensemble"] is None and "target" in edge:  # lists that are equally long would be zipped
            edge["target"] = edge["target"][:1]
    if kind == "maps":
        edge["taps"] = r.choice([["layer1"], ["layer2"], ["layer1", "layer2"]])
    if edge["loss"] in ("hint", "cosine"):
        edge["head"] = "conv1x1" if kind == "maps" else "linear"
    if edge["loss"] in SOFTENED and r.random() < 0.5:
        edge["temperature"] = moving(r, 3.0)
    if r.random() < 0.3:
        edge["when"] = r.choice([{"from": 0.5}, {"to": 1}, {"from": 1}, {"from": 0.25, "to": 0.75}])
    if len(edge.get("taps", [1])) == len(edge.get("source", [])) == 1 and r.random() < 0.3:
        edge["clip"] = r.choice([0.01, 0.1, {"linear": [0.1, 0.01]}])
    return edge


def begun(words):
    """The nets before the first step, images and labels."""
    torch.manual_seed(words["seed"])
    nets = {name: Net(width, words["norm"]).double() for name, width in words["widths"].items()}
    return nets, torch.randn(SAMPLES, 2, 6, 6, dtype=torch.float64), torch.randint(CLASSES, (SAMPLES,))


# -- by kdkit ----------------------------------------------------------------------------------------------------------


class Beginning(pl.Callback):
    """The heads as they are drawn: (edge, student) → one for each layer."""

    def on_train_start(self, trainer, distiller):
        self.heads = {}
        for name, edge in distiller.graph.edges.items():
            links = [link for call in edge.calls for link in call.links]
            for link, head in zip(links, copy.deepcopy(edge.heads), strict=bool(edge.heads)):
                self.heads.setdefault((name, link.target.node), nn.ModuleList()).append(head)


def by_kdkit(words):
    """Its models after training, and its heads before."""
    nets, x, y = begun(words)
    own = {name: kdkit.Node(nets[name], optimizer=o, lr=lr) for name, (o, lr) in words["own"].items()}
    nodes = {**nets, **{name: kdkit.frozen(nets[name]) for name in words["teachers"]}, **own}
    if words["slow"]:
        nodes["slow"] = kdkit.ema("a", decay=DECAY)
    distiller = kdkit.Distiller(
        nodes,
        [kdkit.Edge(**{word: value for word, value in edge.items() if value is not None}) for edge in words["edges"]],
        optimizer=words["optimizer"],
        lr=words["lr"],
        update="sequential" if words["sequential"] else "simultaneous",
        stages=[kdkit.Stage(*stage) for stage in words["stages"]],
    )
    beginning = Beginning()
    trainer = pl.Trainer(
        max_epochs=words["epochs"],
        precision="64-true",
        accelerator="cpu",
        accumulate_grad_batches=words["accumulate"],
        gradient_clip_val=words["clip"],
        callbacks=[beginning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(distiller, DataLoader(TensorDataset(x, y), batch_size=BATCH))
    return {name: distiller.graph.model(name) for name in nodes}, beginning.heads


# -- by hand -----------------------------------------------------------------------------------------------------------


def at(spec, t, epochs):
    """What a schedule is at a time."""
    if not isinstance(spec, dict):
        return spec
    ((word, args),) = spec.items()
    if word == "linear":
        return args[0] + (args[1] - args[0]) * t / epochs
    if word == "cosine":
        return args[1] + (args[0] - args[1]) * (1 + math.cos(math.pi * t / epochs)) / 2
    if word == "multistep":
        return args["start"] * 0.1 ** sum(t >= share * epochs for share in args["at"])
    if word == "step":
        return args["start"] * 0.5 ** math.floor(t / args["every"])
    return args["start"] * math.exp(-args["rate"] * (t if args["by"] == "step" else math.floor(t)))


def within(when, t, epochs):
    """Whether it is the time of an edge or of a stage."""
    first, last = (x * epochs if x < 1 else x for x in (when.get("from", 0), when.get("to", epochs)))
    return first <= t < last


def one_of(logits, kind, T):
    """Several teachers' logits as those of one."""
    if kind == "geometric":
        return sum(logits) / len(logits)
    p = sum((z / T).softmax(1) for z in logits) / len(logits)
    return T * p.log() + T * sum((z / T).logsumexp(1, keepdim=True) for z in logits) / len(logits)


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, most):
        ctx.most = most
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.most / gradient.norm()).clamp(max=1.0), None


def term(edge, learner, said, y, t, words, heads):
    """One edge's weighted loss for one learner."""
    epochs, name, out = words["epochs"], edge["loss"], said[learner]
    natural = {"pkt": "embedding", "rkd": "embedding", "cosine": "embedding", "cc": "embedding"}.get(name, "logits")
    taps = edge.get("taps", [natural])
    softened = {"temperature": at(edge["temperature"], t, epochs)} if "temperature" in edge else {}
    loss = LOSSES[name].cls(**softened)
    sources = [peer for peer in edge["among"] if peer != learner] if "among" in edge else edge.get("source", [])
    taught = [[said[source][tap].detach() for tap in taps] for source in sources]
    if edge.get("ensemble") and len(sources) > 1:
        T = softened.get("temperature", SOFTENED.get(name, 1.0))
        taught = [[one_of([tensors[0] for tensors in taught], edge["ensemble"], T)]]
    if "clip" in edge:  # of the gradient as it is before it is divided by the batches that are accumulated
        out = {**out, taps[0]: Clipped.apply(out[taps[0]], at(edge["clip"], t, epochs) / words["accumulate"])}
    pairs = [list(zip((out[tap] for tap in taps), tensors, strict=True)) for tensors in taught]
    if (edge["name"], learner) in heads:
        pairs = [[h(*pair) for h, pair in zip(heads[edge["name"], learner], some, strict=True)] for some in pairs]
    if name == "ce":
        values = [loss(out["logits"], y)]
    else:
        values = [sum(loss(*pair, *[y] * (name == "dkd")) for pair in some) for some in pairs]
    return at(edge["weight"], t, epochs) * sum(values) / (len(values) if "among" in edge else 1)


def by_hand(words, heads):
    """The nets after a plain loop that begins with these heads."""
    nets, x, y = begun(words)
    students, epochs, accumulate = words["students"], words["epochs"], words["accumulate"]
    for name in words["teachers"]:
        nets[name].eval().requires_grad_(False)
    if words["slow"]:
        nets["slow"] = copy.deepcopy(nets["a"]).eval().requires_grad_(False)
    learned = {
        s: [*nets[s].parameters(), *(p for k, h in heads.items() if k[1] == s for p in h.parameters())]
        for s in students
    }
    rates, optimizers = {}, {}
    for s in students:
        spec, rates[s] = words["own"].get(s, (words["optimizer"], words["lr"]))
        optimizers[s] = ALIKE[spec["name"]](learned[s], lr=1.0, **{k: v for k, v in spec.items() if k != "name"})

    def update(s, t):
        if words["clip"]:
            nn.utils.clip_grad_norm_(learned[s], words["clip"])
        optimizers[s].param_groups[0]["lr"] = at(rates[s], t, epochs)
        optimizers[s].step()
        optimizers[s].zero_grad()

    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    for epoch in range(epochs):
        for i, (images, labels) in enumerate(batches):
            t, since = epoch + i / len(batches), epoch + i // accumulate * accumulate / len(batches)  # this update
            train = next((names for _, when, names in words["stages"] if within(when, since, epochs)), None) or students
            for s in students:
                nets[s].eval().requires_grad_(False)
            for s, _, part in (name.partition(".") for name in train):
                nets[s].get_submodule(part).train().requires_grad_(True)
            learners = [s for s in students if any(name.split(".")[0] == s for name in train)]
            edges = [edge for edge in words["edges"] if within(edge.get("when", {}), since, epochs)]
            due = (i + 1) % accumulate == 0 or i + 1 == len(batches)
            said = {name: net.told(images) for name, net in nets.items()}
            for s in learners:
                mine = [e for e in edges if s in e.get("among", e.get("target", students))]
                if mine:
                    (sum(term(e, s, said, labels, t, words, heads) for e in mine) / accumulate).backward()
                if words["sequential"]:  # whoever comes next learns from what this one says now; statistics stay
                    update(s, t)
                    kept = copy.deepcopy(dict(nets[s].named_buffers()))
                    said[s] = nets[s].told(images)
                    nets[s].load_state_dict(kept, strict=False)
            for s in learners if due and not words["sequential"] else []:
                update(s, t)
            if words["slow"] and due:
                for mean, new in zip(nets["slow"].parameters(), nets["a"].parameters(), strict=True):
                    mean.mul_(DECAY).add_(new.detach(), alpha=1 - DECAY)
                nets["slow"].load_state_dict(dict(nets["a"].named_buffers()), strict=False)
    return nets
