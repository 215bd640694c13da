"""A plugin distribution for tests: a tiny dataset, a protocol, and algorithms that misbehave."""

SOURCE = """
from medbench.api import *

C = Citation(title="t", authors="a", venue="v", year=2020)

def algorithm(name, works_on="features", **traits):
    return AlgorithmSpec(
        name="toy/" + name, version="1", factory="toy_parts:" + name.title().replace("-", ""),
        summary="for tests", traits=Traits(works_on=works_on, adapts="nothing", **traits),
        citation=C, licence="MIT",
        parameters=(Parameter("p", 0, "any number", "int", stage="adapt"),
                    Parameter("file", None, "a path", "str", optional=True, stage="adapt")))

@hookimpl
def medbench_datasets():
    return [DatasetSpec(name="toy", version="1", factory="toy_parts:open_toy", summary="stripes",
            modality="none", domain="toy", licence="CC0", citation=C,
            parameters=(Parameter("noise", 0, "0 or more", "int", minimum=0),))]

@hookimpl
def medbench_protocols():
    return [ProtocolSpec(name="toy/classes", version=1, summary="toy", resource="toy_medbench_files:p.yaml"),
            ProtocolSpec(name="toy/sites", version=1, summary="toy", resource="toy_medbench_files:s.yaml")]

@hookimpl
def medbench_algorithms():
    return [
        algorithm("mean", batched=True), algorithm("raises"), algorithm("exits"),
        algorithm("segfaults"), algorithm("hangs"), algorithm("nan"), algorithm("wrong-shape"),
        algorithm("cheats"), algorithm("touches", works_on="images"), algorithm("memory"),
        algorithm("unequal", batched=True), algorithm("children"), algorithm("chatty"),
        algorithm("slow-training", meta_trains=True), algorithm("bad-training", meta_trains=True),
        algorithm("edits-support"), algorithm("no-predictor"), algorithm("no-meta", meta_trains=True),
        algorithm("grows"), algorithm("hungry", batched=True), algorithm("gpu"),
        algorithm("dies-once"), algorithm("keeps-the-lock"), algorithm("fills-the-disk"),
    ]
"""

PARTS = """
import os, subprocess, sys, time
import numpy as np
import torch
from medbench.api import Algorithm, ClassSplit, Dataset, DatasetInfo, Predictor

class Toy(Dataset):
    def __init__(self, noise):
        n = 10
        self.labels = np.repeat(np.arange(n), 24)
        self.sites = np.tile(np.arange(3), 80)
        self.noise = noise
        self.info = DatasetInfo(
            name="toy", label_names=tuple(f"c{i}" for i in range(n)), image_shape=(16, 16, 1),
            domain="toy", modality="none", licence="CC0", site_names=("a", "b", "c"),
            class_splits={"d": ClassSplit(tuple(range(5)), (5, 6), (7, 8, 9))})

    @property
    def digest(self):
        return f"toy-{self.noise}"

    def read(self, indices):
        rng = np.random.default_rng(7)
        noise = rng.integers(0, 60 + self.noise, (len(self.labels), 16, 16, 1))
        x = np.arange(16)[:, None] * (self.labels[indices][:, None, None, None] + 1)
        wave = 90 + 80 * np.sin(0.25 * x[..., None] + np.arange(16)[None, None, :, None] * 0.3)
        return (wave.reshape(len(indices), 16, 16, 1) + noise[indices]).astype(np.uint8)

def open_toy(place, noise):
    return Toy(noise)

class P(Predictor):
    def __init__(self, centres):
        self.centres = centres
    def predict(self, query):
        return -torch.cdist(query, self.centres).square()

class Mean(Algorithm):
    def __init__(self, p=0, file=None):
        self.p, self.file = p, file
    def adapt(self, support):
        one = torch.nn.functional.one_hot(support.labels, support.n_way).to(support.inputs.dtype)
        sums = one.transpose(-1, -2) @ support.inputs
        return P(sums / one.sum(-2).unsqueeze(-1))

class Raises(Mean):
    def adapt(self, support):
        raise KeyError("a bug")
class Exits(Mean):
    def adapt(self, support):
        os._exit(7)
class Segfaults(Mean):
    def adapt(self, support):
        import ctypes
        ctypes.string_at(0)
class Hangs(Mean):
    def adapt(self, support):
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
class Nan(Mean):
    def adapt(self, support):
        return P(super().adapt(support).centres * float("nan"))
class WrongShape(Mean):
    def adapt(self, support):
        return P(super().adapt(support).centres[:-1])
class Cheats(Mean):
    def adapt(self, support):
        class Q(P):
            def predict(self, query):
                return super().predict(query - query.mean(0, keepdim=True))
        return Q(super().adapt(support).centres)
class Touches(Mean):
    def prepare(self, backbone, learned):
        self.backbone = backbone
    def adapt(self, support):
        backbone = self.backbone.train()
        backbone(support.inputs)
        backbone.eval()
        class Q(Predictor):
            def predict(self, query):
                return torch.zeros(len(query), support.n_way)
        return Q()
class Memory(Mean):
    def adapt(self, support):
        raise MemoryError("no more")
class Unequal(Mean):
    def adapt(self, support):
        found = super().adapt(support)
        return P(found.centres.flip(-2)) if support.inputs.dim() == 3 else found
class Children(Mean):
    def adapt(self, support):
        if not os.path.exists(self.file):
            child = subprocess.Popen(["sleep", "600"])
            open(self.file, "w").write(str(child.pid))
            os._exit(1)
        return super().adapt(support)
class Chatty(Mean):
    def adapt(self, support):
        print("x" * 2_000_000)
        raise ValueError("after much talk")
class Grows(Mean):
    def adapt(self, support):
        held = []
        while True:
            held.append(np.ones(16 << 20, np.uint8))
            time.sleep(0.01)
class Hungry(Mean):
    def adapt(self, support):
        if support.inputs.dim() == 3 and len(support.inputs) > 8:
            raise MemoryError("too many episodes at once")
        return super().adapt(support)
class Gpu(Mean):
    def adapt(self, support):
        raise ValueError("sees " + os.environ.get("CUDA_VISIBLE_DEVICES", "no setting"))
class DiesOnce(Mean):
    def adapt(self, support):
        import signal
        with open(self.file, "a+") as file:
            file.seek(0)
            times = len(file.read())
            file.write("x")
        if times < self.p:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().adapt(support)
class KeepsTheLock(Mean):
    def adapt(self, support):
        import ctypes
        open(self.file, "w").write(str(os.getpid()))
        ctypes.PyDLL(None).sleep(600)
class FillsTheDisk(Mean):
    def adapt(self, support):
        with open(self.file, "wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
class EditsSupport(Mean):
    def adapt(self, support):
        support.inputs.add_(1.0)
        return super().adapt(support)
class NoPredictor(Mean):
    def adapt(self, support):
        return 3
class NoMeta(Mean):
    pass
class SlowTraining(Mean):
    def meta_train(self, backbone, source, run):
        optimiser = torch.optim.Adam(backbone.parameters(), lr=1e-3)
        backbone.train()
        for step in run.steps({"backbone": backbone, "optimiser": optimiser},
                              images_per_step=source.images_per_task, validate=self.validate(backbone)):
            task, = source.tasks(step)
            features = backbone(torch.cat([task.support.inputs, task.query]))
            n = len(task.support.inputs)
            support = type(task.support)(features[:n], task.support.labels, task.support.n_way, (0,))
            scores = Mean().adapt(support).predict(features[n:])
            loss = torch.nn.functional.cross_entropy(scores, task.query_labels)
            # Drawn from the global state on purpose: a resumed training must meet the same noise.
            loss = loss * (1 + 0.1 * torch.rand(()))
            optimiser.zero_grad(); loss.backward(); optimiser.step()
            run.log(float(loss.detach()))
            time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
        return run.best()
    def validate(self, backbone):
        def go(support, query):
            with torch.no_grad():
                s = type(support)(backbone(support.inputs), support.labels, support.n_way, (0,))
                return Mean().adapt(s).predict(backbone(query))
        return go
class BadTraining(Mean):
    def meta_train(self, backbone, source, run):
        for step in run.steps({"backbone": backbone}, images_per_step=10):
            run.log(float("nan") if step == 3 else 1.0)
        return run.best()
"""

COMMON = """
version: 1
summary: toy
datasets: [toy]
image_size: 16
channels: 1
way: 3
shots: [1, 2]
queries: 3
episodes: 40
cost_episodes: 4
validation_episodes: 5
train: {way: 3, shot: 2, query: 3, episodes: 30}
"""

CLASSES = "name: toy/classes\nsetting: within_dataset\nclass_split: d\n" + COMMON
SITES = "name: toy/sites\nsetting: leave_one_site_out\n" + COMMON


def install(distribute) -> None:
    """Put the toy distribution on the path."""
    site = distribute("toy", SOURCE, toy_parts=PARTS)
    files = site / "toy_medbench_files"
    files.mkdir(exist_ok=True)
    (files / "__init__.py").write_text("")
    (files / "p.yaml").write_text(CLASSES)
    (files / "s.yaml").write_text(SITES)


def suite(*algorithms: str, protocol: str = "toy/classes", **more: object) -> str:
    """The YAML of a suite of toy algorithms on a small conv4."""
    lines = [
        "name: toy",
        f"protocols: [{protocol}]",
        "backbones: [{name: conv4, params: {width: 8}}]",
        f"algorithms: [{', '.join(algorithms)}]",
        *(f"{key}: {value}" for key, value in more.items()),
    ]
    return "\n".join(lines) + "\n"
